"""From a corpus to study records and training batches: a command for every corpus, and the folders that they share."""
