"""Training settings: one YAML file for each run, and their schema."""
