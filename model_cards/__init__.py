"""The model card's template and the code that fills it from a run's metrics."""
