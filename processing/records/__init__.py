"""Study records: their columns, files and checks, and how they are read."""
