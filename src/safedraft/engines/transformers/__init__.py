"""Any causal language model that Transformers loads, as an engine."""
