"""Trees of drafted tokens: their gain on a pair and a machine, and the choice of a shape."""
