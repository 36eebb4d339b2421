"""SafeDraft: Speculative Safety-Aware Decoding."""
