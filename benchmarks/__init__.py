"""Speed, memory and cost; each module prints JSON."""
