"""The chat templates of a pair: which one each model has, with which variables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from safedraft.core.errors import SafeDraftError
from safedraft.models.fingerprint import AdapterFacts, digest
from safedraft.text.template import require_variables, set_variables, template_of

if TYPE_CHECKING:
    from pathlib import Path

    from safedraft.models.description import ModelDescription
    from safedraft.models.registry import PairSpec


def settle_template(spec: PairSpec, facts: AdapterFacts | None, adapter: Path | None) -> PairSpec:
    """Return the pair with what it leaves open about templates taken from its adapter.

    Raises:
        SafeDraftError: the pair names something else than the adapter was trained with.
    """
    settled: dict[str, Any] = {}
    for name in ("template", "template_from"):
        chosen, trained = getattr(spec, name), getattr(facts, name, None)
        if chosen is not None and trained is not None and chosen != trained:
            raise SafeDraftError(
                f"the adapter in {adapter} was trained with {name} = {show_settings(trained)} and "
                f"the pair has {show_settings(chosen)}: leave it out, or train a draft with it"
            )
        settled[name] = trained if chosen is None else chosen
    return spec.model_copy(update=settled)


def apply_template(spec: PairSpec, target: ModelDescription, draft: ModelDescription) -> None:
    """Give both tokenizers the templates of a settled pair.

    Raises:
        SafeDraftError: the template that both models should have does not exist, or no template
            reads a variable of the pair.
    """
    tokenizers = [model.tokenizer for model in (target, draft) if model.tokenizer]
    if spec.template_from in ("target", "draft"):
        source = target if spec.template_from == "target" else draft
        if source.tokenizer is None:
            raise SafeDraftError(f"template_from: {source.name} has no tokenizer")
        for tokenizer in tokenizers:
            tokenizer.chat_template = template_of(source.tokenizer)
    templates = [template_of(tokenizer) for tokenizer in tokenizers if tokenizer.chat_template]
    require_variables(spec.template or {}, templates)
    for tokenizer in tokenizers:
        if tokenizer.chat_template:
            tokenizer.chat_template = set_variables(template_of(tokenizer), spec.template or {})


def template_digest(model: ModelDescription) -> str | None:
    """A digest of the model's template as it is used; None without one."""
    if model.tokenizer is None or not model.tokenizer.chat_template:
        return None
    return digest(template_of(model.tokenizer), digits=32)


def show_settings(value: Mapping[str, Any] | str) -> str:
    """Write variables or a name as a pair's file has them."""
    if isinstance(value, str):
        return repr(value)
    items = (f"{name} = {json.dumps(item, ensure_ascii=False)}" for name, item in value.items())
    return "{ " + ", ".join(items) + " }"
