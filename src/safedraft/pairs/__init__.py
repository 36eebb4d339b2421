"""Which two models: the registry, fetching, checking and loading them, and the loaded pair."""
