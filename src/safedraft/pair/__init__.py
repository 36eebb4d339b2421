"""A target and a draft that decode together, on any engine."""

from safedraft.pair.both_prompts import Prompts
from safedraft.pair.pair import Pair

__all__ = ["Pair", "Prompts"]
