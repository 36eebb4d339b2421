"""Text around the decoding loop: messages become prompts, tokens become text and results."""
