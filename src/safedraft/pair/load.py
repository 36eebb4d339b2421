"""From names to a loaded pair."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from inspect import signature
from os import PathLike
from typing import TYPE_CHECKING, Any

from safedraft.core.config import SSDConfig
from safedraft.core.errors import SafeDraftError, UnguardedWarning, refuse_invalid
from safedraft.engines import DEFAULT_ENGINE, ENGINES
from safedraft.engines.base import LoadedModel, LoadedPair
from safedraft.models.progress import ReportProgress, show_progress
from safedraft.models.registry import PairSpec, TemplateSource, choose_pair, pairs
from safedraft.pair.pair import Pair
from safedraft.text.encode import encode
from safedraft.text.messages import with_system

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_FIELDS_IN_MEMORY = ("template", "template_from", "target_system", "draft_system")

Named = str | PathLike[str]
"""A name, a hub id, or a folder."""


def load_pair(
    name: Named | None = None,
    draft: Named | None = None,
    *,
    target: Named | None = None,
    adapter: Named | None = None,
    use_adapter: bool = True,
    template: Mapping[str, bool | int | float | str] | None = None,
    template_from: TemplateSource | None = None,
    other_base: bool = False,
    config: SSDConfig | None = None,
    engine: str = DEFAULT_ENGINE,
    report: ReportProgress | None = None,
    **options: Any,
) -> Pair:
    """Fetch, check and load a pair.

    Args:
        name: a registered pair, the default one when nothing is given; before a draft, it may also
            be the target, as in ``load_pair("owner/big", "owner/small")``.
        draft: in place of the pair's own, a registered model, a folder, or a hub id
            ``owner/name[@revision]``.
        target: likewise.
        adapter: a LoRA adapter for the draft (safetensors), merged into it: one that comes with
            SafeDraft, a folder, or a hub id.
        use_adapter: False for the bare draft, without its adapter and without the warning that it
            has none.
        template: variables of the chat templates, such as ``{"enable_thinking": False}``; by
            default those that the adapter was trained with.
        template_from: ``target`` or ``draft`` gives both models the chat template of that one.
        other_base: accept other weights than those that the adapter was trained on, of the same
            architecture, with a warning.
        config: in place of the pair's own.
        engine: ``transformers``, ``vllm`` for many requests at once (docs/vllm.md), or another
            that is installed.
        report: called with stage, done and total bytes while a model is fetched; by default a bar
            is drawn on a terminal or in a notebook.
        options: the engine's own. Transformers: ``dtype`` (``auto``, ``bfloat16``, ``float16``,
            ``float32``), ``draft_dtype`` (also ``int8`` on processors), ``device`` and
            ``draft_device`` (``auto`` or as torch names it), and for the target ``device_map`` and
            ``quantization_config`` as in ``from_pretrained``. vLLM: ``dtype``,
            ``draft_tokens_up_to`` and any of vLLM's engine arguments.

    Raises:
        SafeDraftError: whatever does not fit, in one line that says what to do.
        IncompatiblePairError: the two models cannot decode together.

    Warns:
        UnguardedWarning: the draft has no adapter, and ``use_adapter`` does not say that it is
            meant to have none; or the adapter was trained on other weights or another template.
    """
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


def load_spec(
    spec: PairSpec,
    *,
    config: SSDConfig | None = None,
    engine: str = DEFAULT_ENGINE,
    report: ReportProgress | None = None,
    **options: Any,
) -> Pair:
    """Load a pair that was chosen already; as ``load_pair``."""
    warn_if_unguarded(spec)
    load = ENGINES.find(engine)
    try:
        signature(load).bind(spec, config, report, **options)
    except TypeError as error:
        raise SafeDraftError(f"the engine {engine}: {error}") from error
    if report is not None:
        return _pair_of(load(spec, config, report, **options), spec)
    with show_progress(lines=False) as shown:
        return _pair_of(load(spec, config, shown, **options), spec)


def pair_from_models(
    models: tuple[PreTrainedModel, PreTrainedModel],
    tokenizers: tuple[PreTrainedTokenizerBase | None, PreTrainedTokenizerBase | None],
    guarded: bool | None,
    config: SSDConfig | None,
    fields: Mapping[str, Any],
) -> Pair:
    """A pair of two models in memory; see ``Pair.from_models``."""
    from safedraft.engines.transformers.in_memory import pair_in_memory

    if unknown := fields.keys() - _FIELDS_IN_MEMORY:
        known = ", ".join(_FIELDS_IN_MEMORY)
        raise SafeDraftError(f"from_models has no field {min(unknown)!r}; it has {known}")
    target, draft = (model.name_or_path or type(model).__name__ for model in models)
    trained = hasattr(models[1], "peft_config") if guarded is None else guarded
    with refuse_invalid(shown=True):
        spec = PairSpec(
            name=f"{target} + {draft}",
            target=target,
            draft=draft,
            adapter="in memory" if trained else None,
            bare_draft=guarded is False,
            **fields,
        )
    warn_if_unguarded(spec)
    return _pair_of(pair_in_memory(spec, models, tokenizers, config), spec)


def _pair_of(loaded: LoadedPair, spec: PairSpec) -> Pair:
    for model in (loaded.target, loaded.draft):
        _require_system_prompt(model)
    return Pair(**{**vars(loaded), "spec": loaded.spec or spec})


def _require_system_prompt(model: LoadedModel) -> None:
    """Refuse a system prompt that the model's chat template cannot show, before any request."""
    if not (model.system and model.tokenizer and model.tokenizer.chat_template):
        return
    greeting = with_system([{"role": "user", "content": "Hello"}], model.system)
    try:
        encode(model.tokenizer, greeting)
    except SafeDraftError as error:
        raise SafeDraftError(
            f"{model.name} cannot have the system prompt that the pair gives it: {error}"
        ) from error


def warn_if_unguarded(spec: PairSpec) -> None:
    """Warn if the draft has no adapter and nobody accepted that.

    Warns:
        UnguardedWarning: once for each pair in a process.
    """
    if spec.warning:
        warnings.warn(spec.warning, UnguardedWarning, stacklevel=4)
