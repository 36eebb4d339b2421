"""SafeDraft: a small, deep-aligned draft makes a large language model safer and faster.

>>> import safedraft
>>> pair = safedraft.load_pair()
>>> pair.generate("Why is the sky blue?").text
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safedraft.core.config import SamplingParams, Scheme, SSDConfig
    from safedraft.core.decode import Step
    from safedraft.core.errors import BrokenModel, IncompatiblePair, PromptTooLong, SafeDraftError
    from safedraft.engines.transformers.generate import ssd_generate
    from safedraft.load import load_pair
    from safedraft.pair import Pair, Prompts
    from safedraft.text.chat import Alternative, Reply, Statistics, Stream, Token

_HOMES = {
    "safedraft.text.chat": ("Alternative", "Reply", "Statistics", "Stream", "Token"),
    "safedraft.core.config": ("SSDConfig", "SamplingParams", "Scheme"),
    "safedraft.core.decode": ("Step",),
    "safedraft.engines.transformers.generate": ("ssd_generate",),
    "safedraft.core.errors": ("BrokenModel", "IncompatiblePair", "PromptTooLong", "SafeDraftError"),
    "safedraft.load": ("load_pair",),
    "safedraft.pair": ("Pair", "Prompts"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 (grouped as a reader meets them)
    "load_pair",
    "Pair",
    "Prompts",
    "SSDConfig",
    "SamplingParams",
    "Scheme",
    "Stream",
    "Reply",
    "Token",
    "Alternative",
    "Statistics",
    "Step",
    "ssd_generate",
    "SafeDraftError",
    "IncompatiblePair",
    "PromptTooLong",
    "BrokenModel",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: torch is not loaded by ``import safedraft``."""
    if name not in _HOME:
        raise AttributeError(f"module 'safedraft' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
