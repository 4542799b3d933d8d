"""Speed, memory and cost; each prints JSON."""
