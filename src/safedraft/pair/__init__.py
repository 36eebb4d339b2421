"""A target and a draft that decode together, on any engine."""

from safedraft.pair.pair import Pair
from safedraft.pair.tokens import Prompts

__all__ = ["Pair", "Prompts"]
