"""Where prompts come from: sources, splits, screening, and how refusals are detected."""
