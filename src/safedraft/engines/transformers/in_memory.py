"""A pair of two models that are in memory already."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from safedraft.core.config import SSDConfig
from safedraft.core.risk import RiskProbe
from safedraft.engines.base import LoadedModel, LoadedPair
from safedraft.models.compatibility import CompatibilityReport, check_compatibility
from safedraft.models.description import ModelDescription
from safedraft.models.registry import PairSpec
from safedraft.models.template import apply_template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def describe(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> ModelDescription:
    """Describe a loaded model; the tokenizer is copied, its template may change."""
    return ModelDescription(
        name, model.config, deepcopy(tokenizer), model.generation_config, type(model)
    )


def pair_in_memory(
    spec: PairSpec,
    models: tuple[PreTrainedModel, PreTrainedModel],
    tokenizers: tuple[PreTrainedTokenizerBase | None, PreTrainedTokenizerBase | None],
    config: SSDConfig | None = None,
) -> LoadedPair:
    """Check that two models fit and put them into an engine; their weights are not changed.

    Raises:
        IncompatiblePairError: they cannot decode together.
        SafeDraftError: the pair says something about templates that does not suit them.
    """
    names = (spec.target, spec.draft)
    descriptions = tuple(map(describe, names, models, tokenizers))
    apply_template(spec, *descriptions)
    compatibility = check_compatibility(*descriptions)
    compatibility.require()
    return assemble(spec, models, descriptions, compatibility, config)


def assemble(
    spec: PairSpec,
    models: tuple[PreTrainedModel, PreTrainedModel],
    descriptions: tuple[ModelDescription, ...],
    compatibility: CompatibilityReport,
    config: SSDConfig | None,
    notes: tuple[str, ...] = (),
    probe: RiskProbe | None = None,
) -> LoadedPair:
    """Put two models that fit into an engine; ``notes`` are warnings of their loading."""
    from safedraft.engines.transformers.engine import TransformersEngine

    target, draft = descriptions
    return LoadedPair(
        engine=TransformersEngine(*models, compatibility.vocabulary, (spec.target, spec.draft)),
        target=LoadedModel(spec.target, models[0], target.tokenizer, spec.target_system),
        draft=LoadedModel(spec.draft, models[1], draft.tokenizer, spec.draft_system),
        vocabulary=compatibility.vocabulary,
        context_length=compatibility.context_length,
        end_tokens=compatibility.end_tokens,
        config=config or spec.config,
        spec=spec,
        notes=notes,
        probe=probe,
    )
