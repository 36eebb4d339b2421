"""Text on both sides of the decoding loop: messages to prompts, tokens to text, replies."""
