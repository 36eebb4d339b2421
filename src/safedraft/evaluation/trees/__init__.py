"""Trees of drafted tokens: what they gain on a pair and a machine, and which to choose."""
