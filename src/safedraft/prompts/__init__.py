"""Prompts: sources, splits, screening, and the detection of refusals."""
