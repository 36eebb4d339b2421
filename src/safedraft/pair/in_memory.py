"""Make a checked pair, in an engine, of two models in memory."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

from safedraft.core.config import SSDConfig
from safedraft.core.errors import SafeDraftError, first_line, refuse_invalid
from safedraft.engines.base import LoadedPair
from safedraft.models.registry import PairSpec
from safedraft.pair.guards import require_probe, require_system_prompts, warn_if_unguarded
from safedraft.pair.options import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Tokenizer: TypeAlias = "PreTrainedTokenizerBase | str | PathLike[str]"
"""A tokenizer of Transformers, or the folder or hub id of one."""

_FIELDS = ("template", "template_from", "target_system", "draft_system")


def take_models(
    models: tuple[PreTrainedModel, PreTrainedModel],
    tokenizers: tuple[Tokenizer | None, Tokenizer | None],
    guarded: bool | None,
    config: SSDConfig | Mapping[str, Any] | None,
    fields: Mapping[str, Any],
) -> LoadedPair:
    """Check two models and put them into an engine; see ``Pair.from_models``."""
    from safedraft.engines.transformers.in_memory import pair_in_memory
    from safedraft.engines.transformers.unwrap import unwrap

    if unknown := fields.keys() - set(_FIELDS):
        known = ", ".join(_FIELDS)
        raise SafeDraftError(f"from_models has no field {min(unknown)!r}; it has {known}")
    trained = hasattr(models[1], "peft_config") if guarded is None else guarded
    plain = unwrap(models[0], "the target"), unwrap(models[1], "the draft")
    target, draft = (model.name_or_path or type(model).__name__ for model in plain)
    with refuse_invalid(shown=True):
        spec = PairSpec(
            name=f"{target} + {draft}",
            target=target,
            draft=draft,
            adapter="in memory" if trained else None,
            bare_draft=guarded is False,
            **fields,
        )
    own_tokenizers = _find_tokenizer(tokenizers[0]), _find_tokenizer(tokenizers[1])
    constants = read_config(config, spec.config)
    warn_if_unguarded(spec, constants)
    loaded = pair_in_memory(spec, plain, own_tokenizers, constants)
    require_system_prompts(loaded)
    require_probe(loaded.probe, config)
    return loaded


def _find_tokenizer(named: Tokenizer | None) -> PreTrainedTokenizerBase | None:
    """Load a tokenizer that is named; one in memory is returned as it is.

    Raises:
        SafeDraftError: it cannot be loaded, or is not a tokenizer of Transformers.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    if named is None or isinstance(named, PreTrainedTokenizerBase):
        return named
    how = "give AutoTokenizer.from_pretrained(…), or the folder or hub id of one"
    if not isinstance(named, str | PathLike):
        raise SafeDraftError(
            f"tokenizer must be one of Transformers, not {type(named).__name__}: {how}"
        )
    try:
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            named, trust_remote_code=False
        )
    except Exception as error:  # Transformers passes on any exception of its parsers
        raise SafeDraftError(
            f"no tokenizer can be loaded from {named} ({first_line(error)}): {how}"
        ) from error
    return loaded
