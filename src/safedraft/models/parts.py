"""The parts of a pair, fetched and checked, with no weights in memory."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from safedraft.core.errors import SafeDraftError, UnguardedWarning
from safedraft.core.risk import RiskProbe
from safedraft.models.compatibility import CompatibilityReport, check_compatibility
from safedraft.models.description import ModelDescription, read_description
from safedraft.models.fetch import fetch, fetch_adapter
from safedraft.models.fingerprint import (
    AdapterFacts,
    read_facts,
    require_base,
    tokenizer_digest,
)
from safedraft.models.probe_file import read_probe
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.registry import PairSpec
from safedraft.models.template import apply_template, settle_template, template_digest
from safedraft.models.template_checks import check_shared_template, check_system_prompt


class Parts(NamedTuple):
    """A pair on this machine, examined, with no weights in memory."""

    spec: PairSpec
    """The pair, with what it left open about templates taken from its adapter."""
    folders: tuple[Path, Path]
    """The folders of the target and of the draft."""
    adapter: Path | None
    descriptions: tuple[ModelDescription, ModelDescription]
    compatibility: CompatibilityReport
    warnings: tuple[str, ...] = ()
    """Reasons why replies may be less safe than expected."""
    probe: RiskProbe | None = None
    """The probe of the adapter, if it has one."""
    narrower: str | None = None
    """Reason why the probe reads the draft alone, if the adapter has a probe of both models."""


def fetch_parts(spec: PairSpec, report: ReportProgress = silent) -> Parts:
    """Fetch what a pair consists of and check that the two fit.

    Raises:
        SafeDraftError: a file cannot be fetched or read.
        IncompatiblePairError: the two models cannot decode together.

    Warns:
        UnguardedWarning: the draft is not the one that its adapter was trained on.
    """
    target, draft = (fetch(model, report) for model in (spec.target, spec.draft))
    adapter = fetch_adapter(spec.adapter, report) if spec.adapter else None
    parts = examine_parts(spec, (target, draft), adapter)
    parts.compatibility.require()
    notes = [*parts.warnings, *filter(None, [parts.narrower])]
    if adapter and (note := require_base(adapter, draft, other_base=spec.other_base)):
        notes.append(note)
    for note in notes:
        warnings.warn(note, UnguardedWarning, stacklevel=5)
    return parts._replace(warnings=tuple(notes))


def examine_parts(spec: PairSpec, folders: tuple[Path, Path], adapter: Path | None) -> Parts:
    """Read what the folders say of a pair and compare the models; its weights are not read.

    Raises:
        SafeDraftError: something cannot be read, or the adapter contradicts the pair.
    """
    facts = read_facts(adapter) if adapter else None
    spec = settle_template(spec, facts, adapter)
    target, draft = map(read_description, folders, (spec.target, spec.draft))
    apply_template(spec, target, draft)
    changed = _changed_template(facts, draft)
    if facts and adapter:
        _require_same_kind(facts, adapter, draft)
    compatibility = check_compatibility(target, draft)
    shared = spec.template_from in ("target", "draft")
    added = [
        *check_system_prompt(target, spec.target_system),
        *check_system_prompt(draft, spec.draft_system),
        *(check_shared_template(target, draft) if shared else ()),
    ]
    probe, narrower = read_probe(adapter, draft, folders[0]) if adapter else (None, None)
    return Parts(
        spec,
        folders,
        adapter,
        (target, draft),
        replace(compatibility, checks=[*compatibility.checks, *added]),
        (changed,) if changed else (),
        probe,
        narrower,
    )


def _require_same_kind(facts: AdapterFacts, adapter: Path, draft: ModelDescription) -> None:
    """Check what other weights cannot excuse: the draft's architecture, and what its ids mean.

    Raises:
        SafeDraftError: the adapter was trained on another architecture, or with another tokenizer.
    """
    own_tokens = tokenizer_digest(draft.tokenizer) if facts.tokenizer else None
    for fact, trained, actual in (
        ("architecture", facts.architecture, draft.config.model_type),
        ("tokenizer", facts.tokenizer, own_tokens),
    ):
        if trained not in (None, actual):
            raise SafeDraftError(
                f"the adapter in {adapter} was trained on a model of another {fact} than "
                f"{draft.name}: choose the draft that it was trained on, or load without it "
                "(--no-adapter)"
            )


def _changed_template(facts: AdapterFacts | None, draft: ModelDescription) -> str | None:
    """Say that the draft's template is not the one that the adapter was trained with, if so."""
    trained = facts.template_digest if facts else None
    if trained in (None, template_digest(draft)):
        return None
    return (
        f"the chat template of {draft.name} is not the one that its adapter was trained with: that "
        "it refuses after this one was never tested; check it with safedraft eval"
    )
