"""vLLM's own server for a pair."""
