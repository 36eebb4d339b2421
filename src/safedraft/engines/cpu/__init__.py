"""An engine for processors: Llama-like decoders with 8-bit weights, as one compiled program."""
