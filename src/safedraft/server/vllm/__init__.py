"""vLLM's own server with a pair in it."""
