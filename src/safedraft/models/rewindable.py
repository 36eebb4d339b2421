"""Whether the state of a model can be cut back after a rejected draft."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from safedraft.core.errors import first_line
from safedraft.models.causal import causal_config, model_class, why_not_causal

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

__all__ = ["empty_cache", "model_class", "why_no_trees", "why_not_rewindable"]

_ATTENTION = {"attention", "full_attention", "sliding_attention", "chunked_attention"}
"""Names of layers whose state is keys and values, which can be cut back."""

_ALWAYS_CAUSAL = {"gpt_neox", "gpt_neox_japanese"}
"""Decoders whose configuration does not call itself one."""

_TAKES_MASKS = {"sdpa", "stacked_sdpa", "eager"}
"""Implementations of attention to which any mask can be given."""

_COUNTS_ANEW = {"bamba"}
"""Models that count positions from 0 in every pass, however many tokens are in the cache."""

_IGNORES_WINDOWS = {"moshi"}
"""Models whose configuration has a window that their attention does not apply."""

_HAVE_LOCAL_LAYERS = {"gpt_neo", "modernbert-decoder"}
"""Models some of whose layers see the latest tokens only, by their place in the cache and not by
their position, although the cache keeps all of them."""

_WINDOWS = ("sliding_window", "attention_chunk_size")
"""Settings by which a cache keeps the latest positions only."""


def why_not_rewindable(
    config: PreTrainedConfig, kind_of_model: type[PreTrainedModel] | None = None
) -> str | None:
    """Why a model cannot be decoded with rejected drafts, or None if it can.

    Recurrent layers (Mamba, linear attention) fold each token into one state, from which it cannot
    be taken out again; encoder-decoders have no single sequence.

    Args:
        config: configuration of the model, or of a whole model of which it is the text part.
        kind_of_model: the class that is loaded, as ``model_class`` finds it; None if there is none.
    """
    kind = config.model_type
    if config.is_encoder_decoder:
        return f"{kind} is an encoder-decoder; SafeDraft decodes decoder-only models"
    text = causal_config(config)
    if _reads_in_both_directions(text):
        return f"{kind} reads in both directions; SafeDraft decodes from left to right"
    if kind_of_model is None:
        if reason := why_not_causal(config):
            return reason
    elif reason := _why_not_rewindable_class(text, kind_of_model):
        return f"{kind} {reason}"
    try:
        layers = empty_cache(config).layers
    except Exception as error:  # Transformers passes on what its configurations raise
        return f"{kind} has no cache in Transformers ({first_line(error)})"
    stuck = {type(layer).__name__ for layer in layers if not layer.is_croppable}
    if stuck:
        return (
            f"{kind} has layers whose state cannot be rewound after a rejected draft "
            f"({', '.join(sorted(stuck))})"
        )
    return None


def why_no_trees(model: PreTrainedModel) -> str | None:
    """Why a model cannot read a tree of drafts in one pass, or None if it can.

    Its attention has to take a mask of its own, its positions have to be given, and its cache has
    to keep every position, so that the nodes that were accepted can be moved together.
    """
    from transformers.cache_utils import DynamicLayer

    kind = model.config.model_type
    layers = {type(layer) for layer in empty_cache(model.config).layers}
    if others := ", ".join(sorted(layer.__name__ for layer in layers - {DynamicLayer})):
        return f"{kind} has layers that do not keep every position ({others})"
    if kind in _HAVE_LOCAL_LAYERS:
        return f"{kind} has layers with a window of their own"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{kind} is given no positions"
    if getattr(model.config.get_text_config(), "alibi", False):
        return f"{kind} derives positions from its mask"
    attention = model.config._attn_implementation
    if attention not in _TAKES_MASKS:
        return f"attn_implementation {attention} takes no mask of a tree: use sdpa"
    return None


def empty_cache(config: PreTrainedConfig) -> DynamicCache:
    """Create an empty cache for one sequence, which can be cut back in layers with windows too.

    A window that the model's kind of configuration does not know is one that its attention does not
    apply, although Transformers' cache would. The cache of such a model keeps all positions;
    otherwise tokens would depend on how blocks are cut.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=config)
    kind = type(config.get_text_config(decoder=True))
    known = any(hasattr(kind, name) or name in kind.attribute_map for name in _WINDOWS)
    known = known and kind.model_type not in _IGNORES_WINDOWS
    if any(getattr(layer, "is_sliding", False) for layer in cache.layers) and not known:
        cache = DynamicCache()
    cache.activate_past_recording()
    return cache


def _reads_in_both_directions(config: PreTrainedConfig) -> bool:
    if getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        return True
    is_decoder = getattr(config, "is_decoder", True)
    return is_decoder is False and config.model_type not in _ALWAYS_CAUSAL


def _why_not_rewindable_class(
    config: PreTrainedConfig, kind_of_model: type[PreTrainedModel]
) -> str | None:
    if getattr(kind_of_model, "_is_stateful", False) and not _only_attends(config):
        return "has recurrent state, which cannot be rewound after a rejected draft"
    if config.model_type in _COUNTS_ANEW:
        return "counts positions anew in every pass, so that no block can be verified"
    parameters = inspect.signature(kind_of_model.forward).parameters
    if "past_key_values" not in parameters:
        return "keeps no cache that could be rewound"
    lacking = [name for name in ("input_ids", "inputs_embeds") if name not in parameters]
    if lacking:
        return (
            f"lacks the interface of a causal language model ({kind_of_model.__name__} takes no "
            f"{lacking[0]}): SafeDraft cannot decode it"
        )
    return None


def _only_attends(config: PreTrainedConfig) -> bool:
    """Whether the layers that the configuration lists are all attention.

    Hybrid architectures also have small models without a recurrent layer.
    """
    named = (getattr(config, name, None) for name in ("layer_types", "layers_block_type"))
    layers = set(next(filter(None, named), ()))
    return bool(layers) and layers <= _ATTENTION
