"""From a corpus to study records: one reader per corpus, and the parts that they share."""
