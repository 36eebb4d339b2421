"""Faster products and attention on processors, for whatever engine uses them."""
