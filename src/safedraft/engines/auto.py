"""The engine that suits a pair and the machine, chosen while it is loaded."""

from __future__ import annotations

from typing import Any

from safedraft.core.config import SSDConfig
from safedraft.core.options import choose_options
from safedraft.engines.base import LoadedPair
from safedraft.engines.cpu.compiled import why_not_available
from safedraft.engines.transformers.load import Placement
from safedraft.engines.transformers.load import load as load_transformers
from safedraft.models.parts import Parts, fetch_parts
from safedraft.models.progress import FACT, ReportProgress, silent
from safedraft.models.registry import PairSpec

_UNDERSTOOD = {
    "dtype": ("auto", "int8", "int4"),
    "draft_dtype": ("int8", "int4"),
    "device": ("auto", "cpu"),
}
"""Options that the engine cpu can do as well, with their values."""


def load(
    spec: PairSpec,
    config: SSDConfig | None = None,
    report: ReportProgress = silent,
    **options: Any,
) -> LoadedPair:
    """Load a pair on the engine cpu if it supports pair and options, otherwise with Transformers.

    Args:
        spec: the pair.
        config: constants in place of the pair's own.
        report: called with the name of the chosen engine, and the reason if it is not ``cpu``.
        options: options of either engine; an option that only Transformers has selects it.

    Raises:
        SafeDraftError: the pair cannot be loaded.
        IncompatiblePairError: the two models cannot decode together.
    """
    options = choose_options(load_transformers, options, "the engines cpu and transformers")
    from safedraft.engines.cpu.load import load_parts as load_on_cpu
    from safedraft.engines.cpu.load import read_bits
    from safedraft.engines.transformers.load import load_parts as load_with_transformers

    if reason := _why_not_asked(options) or why_not_available():
        report(f"engine transformers: the engine cpu {reason}", 0, FACT)
        return load_transformers(spec, config, report, **options)
    bits = read_bits(options.get("dtype", "auto"), options.get("draft_dtype"))
    parts = fetch_parts(spec, report)
    if reason := _why_not_these(parts):
        placement = Placement.read(spec, **options)
        report(f"engine transformers: {reason}", 0, FACT)
        return load_with_transformers(parts, config, report, placement)
    report("engine cpu", 0, 0)
    return load_on_cpu(parts, config, report, bits)


def _why_not_asked(options: dict[str, Any]) -> str | None:
    """Why the options ask for Transformers, or None if they do not."""
    import torch

    for name, value in options.items():
        if str(value) not in _UNDERSTOOD.get(name, ()):
            return f"has no {name} {value}"
    if str(options.get("device", "auto")) == "auto" and torch.accelerator.is_available():
        return "is for processors, and there is an accelerator"
    return None


def _why_not_these(parts: Parts) -> str | None:
    from safedraft.engines.cpu.architecture import why_not_supported

    reasons = (why_not_supported(description.config) for description in parts.descriptions)
    return next(filter(None, reasons), None)
