"""Faster matrix products and attention on processors, shared by the engines."""
