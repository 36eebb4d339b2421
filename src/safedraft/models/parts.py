"""What a pair consists of, on this machine and checked, with no weights in memory."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from safedraft.models.compatibility import CompatibilityReport, check_compatibility
from safedraft.models.description import ModelDescription, read_description
from safedraft.models.fetch import fetch, fetch_adapter
from safedraft.models.fingerprint import require_base
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.registry import PairSpec


class Parts(NamedTuple):
    """A pair on this machine, examined, with no weights in memory."""

    folders: tuple[Path, Path]
    """Of the target and of the draft."""
    adapter: Path | None
    descriptions: tuple[ModelDescription, ModelDescription]
    compatibility: CompatibilityReport


def fetch_parts(spec: PairSpec, report: ReportProgress = silent) -> Parts:
    """Fetch what a pair consists of and check that the two fit.

    Raises:
        SafeDraftError: something cannot be had or read.
        IncompatiblePairError: the two models cannot decode together.
    """
    target, draft = (fetch(model, report) for model in (spec.target, spec.draft))
    adapter = fetch_adapter(spec.adapter, report) if spec.adapter else None
    if adapter:
        require_base(adapter, draft)
    descriptions = read_description(target, spec.target), read_description(draft, spec.draft)
    compatibility = check_compatibility(*descriptions)
    compatibility.require()
    return Parts((target, draft), adapter, descriptions, compatibility)
