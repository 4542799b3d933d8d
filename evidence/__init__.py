"""The evidence that the method learns: arms of one experiment over several seeds, and the tables of RESULTS.md."""
