"""Load a pair by the names of its models."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from os import PathLike
from typing import Any

from safedraft.core.config import SSDConfig
from safedraft.core.errors import SafeDraftError
from safedraft.core.options import choose_options
from safedraft.engines import DEFAULT_ENGINE, ENGINES
from safedraft.models.progress import ReportProgress, show_progress
from safedraft.models.registry import PairSpec, TemplateSource, choose_pair, pairs
from safedraft.pair.guards import (
    require_probe,
    require_system_prompts,
    warn_if_unguarded,
    warn_of_unread_risk,
)
from safedraft.pair.options import read_config
from safedraft.pair.pair import Pair

Named = str | PathLike[str]
"""A name, a hub id, or the path of a folder or GGUF file."""

_SYNONYMS = {
    "model": "target",
    "draft_model": "draft",
    "speculative_model": "draft",
    "assistant_model": "draft",
}
"""The parameter of ``load_pair`` by its name in vLLM or Transformers."""


def load_pair(
    name: Named | None = None,
    draft: Named | None = None,
    adapter: Named | None = None,
    *,
    target: Named | None = None,
    use_adapter: bool = True,
    template: Mapping[str, bool | int | float | str] | None = None,
    template_from: TemplateSource | None = None,
    other_base: bool = False,
    config: SSDConfig | Mapping[str, Any] | None = None,
    engine: str = DEFAULT_ENGINE,
    report: ReportProgress | None = None,
    **options: Any,
) -> Pair:
    """Fetch, check and load a pair.

    Args:
        name: a registered pair, the default one when nothing is given; before a draft, it may also
            be the target, as in ``load_pair("owner/big", "owner/small")``.
        draft: in place of the pair's own, a registered model, a folder, a GGUF file, or a hub id
            ``owner/name[@revision]``.
        adapter: a LoRA adapter for the draft (safetensors), merged into it: one that comes with
            SafeDraft, a folder, or a hub id.
        target: as ``draft``.
        use_adapter: False for the bare draft, without its adapter and without the warning that it
            has none.
        template: variables of the chat templates, such as ``{"enable_thinking": False}``; by
            default those that the adapter was trained with.
        template_from: ``target`` or ``draft`` gives both models the chat template of that one.
        other_base: accept other weights than those that the adapter was trained on, of the same
            architecture, with a warning.
        config: constants in place of the pair's own, or a mapping that replaces some of them.
        engine: ``auto``, which is ``cpu`` on processors for the models that it runs and
            ``transformers`` otherwise; ``vllm`` for many requests at once, or another that is
            installed.
        report: called with stage, done and total bytes while a model is fetched; by default a bar
            is drawn on a terminal or in a notebook.
        options: the engine's own. Transformers: ``dtype`` (``auto``, ``bfloat16``, ``float16``,
            ``float32``), ``draft_dtype`` (also ``int8`` on processors), ``device`` and
            ``draft_device`` (``auto`` or as torch names it), ``attn_implementation``, and for the
            target ``device_map``, ``max_memory`` and ``quantization_config`` as in
            ``from_pretrained``. vLLM: ``dtype``, ``draft_tokens_up_to`` and any of vLLM's engine
            arguments. ``model`` is taken as ``target``, and ``draft_model`` as ``draft``.

    Raises:
        SafeDraftError: the pair cannot be loaded; the message says what to do, in one line.
        IncompatiblePairError: the two models cannot decode together.

    Warns:
        UnguardedWarning: the draft has no adapter, and ``use_adapter`` does not say that it is
            meant to have none; the adapter was trained on other weights or another template, or
            lacks the probe that the pair's constants are for; or the constants turn the guard off.
    """
    named = {"target": target, "draft": draft}
    for synonym in _SYNONYMS.keys() & options.keys():
        _rename(synonym, named, options)
    target, draft = named["target"], named["draft"]
    if name is not None and draft is not None and target is None and str(name) not in pairs():
        name, target = None, name
    name, target, draft, adapter = (
        None if named is None else str(named) for named in (name, target, draft, adapter)
    )
    spec = choose_pair(
        name,
        target=target,
        draft=draft,
        adapter=adapter,
        use_adapter=use_adapter,
        template=template,
        template_from=template_from,
        other_base=other_base,
    )
    return load_spec(spec, config=config, engine=engine, report=report, **options)


def _rename(synonym: str, named: dict[str, Named | None], options: dict[str, Any]) -> None:
    """Move an option with another library's name to the parameter of the same meaning."""
    meant, value = _SYNONYMS[synonym], options.pop(synonym)
    if value is not None and named[meant] is not None:
        raise SafeDraftError(f"give {meant} or {synonym}, which mean the same, not both")
    named[meant] = named[meant] if value is None else value


def load_spec(
    spec: PairSpec,
    /,
    *,
    config: SSDConfig | Mapping[str, Any] | None = None,
    engine: str = DEFAULT_ENGINE,
    report: ReportProgress | None = None,
    **options: Any,
) -> Pair:
    """Load a pair that was chosen already; as ``load_pair``."""
    constants = read_config(config, spec.config)
    warn_if_unguarded(spec, constants)
    load = ENGINES.find(engine)
    own = choose_options(load, options, f"the engine {engine}")
    shown = nullcontext(report) if report is not None else show_progress(lines=False)
    with shown as reporting:
        loaded = load(spec, constants, reporting, **own)
    require_system_prompts(loaded)
    require_probe(loaded.probe, config)
    notes = (*loaded.notes, *warn_of_unread_risk(spec, loaded.probe))
    return Pair(**{**vars(loaded), "spec": loaded.spec or spec, "notes": notes})
