"""The method: knows tensors, no model and no text."""
