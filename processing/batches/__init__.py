"""From study records to training batches."""
