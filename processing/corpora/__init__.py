"""What the readers of the corpora are made of."""
