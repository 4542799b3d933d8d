"""Embeddings to figures: one folder per `evaluate` metric, one module per protocol, prompt sets as data."""
