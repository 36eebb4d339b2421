"""Examines a pair before its weights are loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from safedraft.core.errors import SafeDraftError
from safedraft.models.causal import count_weights
from safedraft.models.check import Check
from safedraft.models.compatibility import CompatibilityReport
from safedraft.models.description import ModelDescription
from safedraft.models.devices import count_heads, split_sizes
from safedraft.models.fetch import fetch_adapter, fetch_description
from safedraft.models.fingerprint import has_weights, require_base
from safedraft.models.gguf import is_gguf, read_header
from safedraft.models.parts import Parts, examine_parts
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.registry import PairSpec, model_files
from safedraft.models.template import show_settings

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)
_LICENSE = re.compile(r"^license(?:_name)?:\s*(\S+)", re.MULTILINE)
_OWN_TERMS = ("llama", "gemma", "other")
"""Licenses with terms of their own on what is made from a model's replies."""


def examine(spec: PairSpec, report: ReportProgress = silent) -> CompatibilityReport:
    """Check a pair from its configurations, tokenizers and adapter.

    Raises:
        SafeDraftError: a file cannot be fetched or read, or the adapter contradicts the pair.
    """
    target, draft = (fetch_description(model, report) for model in (spec.target, spec.draft))
    adapter = fetch_adapter(spec.adapter, report) if spec.adapter else None
    parts = examine_parts(spec, (target, draft), adapter)
    added = [
        *_check_settings(parts.spec, bool(adapter)),
        *(Check("template settings", "warning", note) for note in parts.warnings),
        _check_adapter(parts.spec, adapter, draft),
        *_check_risk(parts),
        *_check_memory(*parts.descriptions),
        _check_devices(*parts.descriptions),
        _check_licenses(parts.spec, parts.folders),
    ]
    return replace(parts.compatibility, checks=[*parts.compatibility.checks, *added])


def _check_settings(spec: PairSpec, adapted: bool) -> Iterator[Check]:
    """Say which variables and whose template the pair or its adapter set, if either does."""
    settings = [] if not spec.template else [f"template = {show_settings(spec.template)}"]
    if spec.template_from not in (None, "own"):
        settings.append(f'template_from = "{spec.template_from}"')
    if settings:
        origin = "as the pair says, or its adapter was trained" if adapted else "as the pair says"
        yield Check("template settings", "ok", f"{', '.join(settings)}: {origin}")


def _check_adapter(spec: PairSpec, adapter: Path | None, draft: Path) -> Check:
    if adapter is None:
        detail = f"none: replies are no safer than those of {spec.target}"
        return Check("adapter", "ok" if spec.bare_draft else "warning", detail)
    if not has_weights(draft):
        detail = f"{spec.adapter}: its base is compared when the weights of the draft are here"
        return Check("adapter", "warning", detail)
    try:
        note = require_base(adapter, draft, other_base=spec.other_base)
    except SafeDraftError as error:
        return Check("adapter", "failure", str(error))
    trained = f"{spec.adapter}: trained on these weights of the draft"
    return Check("adapter", "warning" if note else "ok", note or trained)


def _check_risk(parts: Parts) -> Iterator[Check]:
    """Say from which models the risk of a request is read, if the draft has an adapter."""
    if parts.adapter is None:
        return
    if parts.probe is None:
        none = "not read: the adapter has no probe (safedraft train-risk)"
        unread = parts.spec.unread_risk
        yield Check("risk", "warning" if unread else "ok", unread or none)
    elif parts.narrower:
        yield Check("risk", "warning", parts.narrower)
    else:
        read = "both models" if len(parts.probe.reads) > 1 else "the draft"
        yield Check("risk", "ok", f"the risk of a request is read from {read}")


def _check_memory(target: ModelDescription, draft: ModelDescription) -> Iterator[Check]:
    sizes = [count_or_none(model) for model in (target, draft)]
    if None in sizes:
        return
    weights = [2 * (size or 0) / 1e9 for size in sizes]
    caches = [cache_bytes(model) / 1e3 for model in (target, draft)]
    detail = (
        f"weights {weights[0]:.1f} + {weights[1]:.1f} GB in bfloat16, cache {caches[0]:.0f} + "
        f"{caches[1]:.0f} MB per 1,000 tokens"
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    fits = sum(weights) < memory
    detail += f"; this machine has {memory:.0f} GB of main memory"
    yield Check("memory", "ok" if fits else "warning", detail)


def count_or_none(model: ModelDescription) -> int | None:
    """Number of weights of a model; None if its configuration does not say it."""
    try:
        return count_weights(model.config)
    except Exception:  # whatever an architecture raises, its fit is another check's matter
        return None


def cache_bytes(model: ModelDescription) -> int:
    """Bytes of keys and values that each token adds to the cache in bfloat16, in full layers."""
    config = model.config.get_text_config()
    heads, shared = count_heads(model)
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return int(2 * 2 * config.num_hidden_layers * shared * width)


def _check_devices(target: ModelDescription, draft: ModelDescription) -> Check:
    """Say how many devices vLLM can split the pair over; it splits both models alike."""
    sizes = [split_sizes(model) for model in (target, draft)]
    common = [size for size in sizes[0] if size in sizes[1]]
    detail = f"vLLM can split both over {_list(common)}"
    if alone := [size for size in sizes[0] if size not in sizes[1]]:
        heads, shared = count_heads(draft)
        detail += (
            f"; the target alone over {_list(alone)} as well, and the draft has {heads} attention "
            f"heads, {shared} of keys and values"
        )
    return Check("devices", "ok", detail)


def _list(sizes: Sequence[int]) -> str:
    return " or ".join(map(str, sizes))


def _check_licenses(spec: PairSpec, folders: tuple[Path, Path]) -> Check:
    names = (spec.target, spec.draft)
    licenses = [find_license(name, folder) for name, folder in zip(names, folders, strict=True)]
    detail = ", ".join(
        f"{name}: {terms or 'unknown'}" for name, terms in zip(names, licenses, strict=True)
    )
    if None in licenses:
        detail += "; see the model's own page before you publish what you make of it"
        return Check("license", "warning", detail)
    if any(terms.lower().startswith(_OWN_TERMS) for terms in licenses if terms):
        detail += "; it has terms on models that are trained with its replies: read them first"
        return Check("license", "warning", detail)
    return Check("license", "ok", detail)


def find_license(name: str, folder: Path) -> str | None:
    """The license that the registry, a GGUF file or the model card in a folder names."""
    registered = model_files().get(name)
    if registered:
        return registered.license
    if is_gguf(folder):
        return read_header(folder).metadata.get("general.license")
    card = folder / "README.md"
    if not card.is_file():
        return None
    front = _FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))
    terms = _LICENSE.search(front[1]) if front else None
    return terms[1] if terms else None
