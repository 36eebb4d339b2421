"""Whether the state of a model can be cut back after a rejected draft."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_ATTENTION = {"attention", "full_attention", "sliding_attention", "chunked_attention"}
"""Names of layers whose state is keys and values, which can be cut back."""

_ALWAYS_CAUSAL = {"gpt_neox", "gpt_neox_japanese"}
"""Decoders whose configuration does not call itself one."""


def why_not_rewindable(
    config: PreTrainedConfig, kind_of_model: type[PreTrainedModel] | None = None
) -> str | None:
    """Why the state of such a model cannot be cut back, or None if it can.

    Recurrent layers (Mamba, linear attention) fold each token into one state, from which it cannot
    be taken out again; encoder-decoders have no single sequence.
    """
    from transformers import DynamicCache

    kind = config.model_type
    if config.is_encoder_decoder:
        return f"{kind} is an encoder-decoder; SafeDraft decodes decoder-only models"
    if getattr(config, "is_decoder", True) is False and kind not in _ALWAYS_CAUSAL:
        return f"{kind} reads in both directions; SafeDraft decodes from left to right"
    if kind_of_model is not None:
        if getattr(kind_of_model, "_is_stateful", False) and not _only_attends(config):
            return f"{kind} has recurrent state, which cannot be rewound after a rejected draft"
        if "past_key_values" not in inspect.signature(kind_of_model.forward).parameters:
            return f"{kind} keeps no cache that could be rewound"
    layers = DynamicCache(config=config).layers
    stuck = {type(layer).__name__ for layer in layers if not layer.is_croppable}
    if stuck:
        return (
            f"{kind} has layers whose state cannot be rewound after a rejected draft "
            f"({', '.join(sorted(stuck))})"
        )
    return None


def _only_attends(config: PreTrainedConfig) -> bool:
    """Whether the layers that the configuration lists are all attention.

    Hybrid architectures also have small models without a recurrent layer.
    """
    named = (getattr(config, name, None) for name in ("layer_types", "layers_block_type"))
    layers = set(next(filter(None, named), ()))
    return bool(layers) and layers <= _ATTENTION


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class that Transformers loads for a causal language model of such a configuration."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    kind: type[PreTrainedModel] | None = found[0] if isinstance(found, tuple) else found
    return kind
