"""From a plan of studies to study records on disk, for every corpus the same way."""
