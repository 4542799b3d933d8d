"""Study records to trained adapters: what `train_accelerate.py` is made of, one role per file."""
