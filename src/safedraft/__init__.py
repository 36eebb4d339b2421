"""SafeDraft: a small, deep-aligned draft makes a large language model safer and faster.

>>> import safedraft
>>> pair = safedraft.load_pair()
>>> pair.generate("Why is the sky blue?").text
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

    from safedraft.core.config import (
        RiskConfig,
        SamplingParams,
        Scheme,
        SSDConfig,
        StructuredOutputs,
    )
    from safedraft.core.errors import (
        BrokenModelError,
        IncompatiblePairError,
        PromptTooLongError,
        SafeDraftError,
        UnguardedWarning,
    )
    from safedraft.core.generation import Step
    from safedraft.engines.transformers.generate import ssd_generate
    from safedraft.models.weights import merge_adapter
    from safedraft.pair.both_prompts import Prompts
    from safedraft.pair.load import load_pair
    from safedraft.pair.pair import Pair
    from safedraft.text.results import Alternative, GenerationResult, Statistics, Token
    from safedraft.text.stream import Stream

_EXPORTS = {
    "safedraft.core.config": (
        "RiskConfig",
        "SSDConfig",
        "SamplingParams",
        "Scheme",
        "StructuredOutputs",
    ),
    "safedraft.core.generation": ("Step",),
    "safedraft.engines.transformers.generate": ("ssd_generate",),
    "safedraft.models.weights": ("merge_adapter",),
    "safedraft.core.errors": (
        "BrokenModelError",
        "IncompatiblePairError",
        "PromptTooLongError",
        "SafeDraftError",
        "UnguardedWarning",
    ),
    "safedraft.pair.load": ("load_pair",),
    "safedraft.pair.pair": ("Pair",),
    "safedraft.pair.both_prompts": ("Prompts",),
    "safedraft.text.results": ("Alternative", "GenerationResult", "Statistics", "Token"),
    "safedraft.text.stream": ("Stream",),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [  # noqa: RUF022 (the order in which a reader meets them)
    "load_pair",
    "Pair",
    "Prompts",
    "SSDConfig",
    "RiskConfig",
    "SamplingParams",
    "StructuredOutputs",
    "Scheme",
    "Stream",
    "GenerationResult",
    "Token",
    "Alternative",
    "Statistics",
    "Step",
    "ssd_generate",
    "merge_adapter",
    "SafeDraftError",
    "IncompatiblePairError",
    "PromptTooLongError",
    "BrokenModelError",
    "UnguardedWarning",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: torch is not loaded by ``import safedraft``."""
    if name == "__version__":
        from importlib import metadata

        return metadata.version("safedraft")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'safedraft' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
