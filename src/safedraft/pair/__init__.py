"""A target and a draft that decode together, on any engine."""

from safedraft.pair.pair import Pair, Prompts

__all__ = ["Pair", "Prompts"]
