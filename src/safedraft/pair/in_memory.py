"""From two models in memory to a checked pair of them in an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from safedraft.core.config import SSDConfig
from safedraft.core.errors import SafeDraftError, refuse_invalid
from safedraft.engines.base import LoadedPair
from safedraft.models.registry import PairSpec
from safedraft.pair.guards import require_system_prompts, warn_if_unguarded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_FIELDS = ("template", "template_from", "target_system", "draft_system")


def take_models(
    models: tuple[PreTrainedModel, PreTrainedModel],
    tokenizers: tuple[PreTrainedTokenizerBase | None, PreTrainedTokenizerBase | None],
    guarded: bool | None,
    config: SSDConfig | None,
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
    warn_if_unguarded(spec)
    loaded = pair_in_memory(spec, plain, tokenizers, config)
    require_system_prompts(loaded)
    return loaded
