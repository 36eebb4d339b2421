"""The causal language model inside a model, which decodes, and the class that loads it.

Models that also take images or sound wrap a language model, which often is an ordinary one that
Transformers loads alone. Both the checks of a pair and the loading of weights ask here.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TEXT_WEIGHTS = {
    r"^(?:model\.)?(?:language_model|text_model)\.(?=lm_head\.)": "",
    r"^(?:model\.)?(?:language_model|text_model)\.(?:model\.)?(?!lm_head\.)": "model.",
}
"""Names of the weights of a wrapped language model in its folder, as patterns, and alone."""

_CLASSIFIERS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "RewardModel",
)
"""Ends of the names of classes whose output layer has no row for each token."""


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class that Transformers loads for the causal language model of such a configuration.

    None if there is no such model, or if the stored weights are those of another one.
    """
    return None if _why_other_weights(config) else _find_class(config)


def causal_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the causal language model: the text part of a wrapped one."""
    text: PreTrainedConfig = config.get_text_config(decoder=True)
    outer = _mapped_class(config)
    if outer is not None and outer.config_class is type(text):  # as Transformers itself does it
        return text
    is_whole = outer is not None and outer.__name__.endswith("ForCausalLM")
    return config if is_whole or _mapped_class(text) is None else text


def is_wrapped(config: PreTrainedConfig) -> bool:
    """Whether the causal language model of such a configuration is only a part of the model."""
    return causal_config(config) is not config


def unwrapped_config(config: PreTrainedConfig, stored: set[str]) -> PreTrainedConfig:
    """The configuration with which a wrapped language model is loaded alone.

    Args:
        config: configuration of the whole model.
        stored: the names of all weights in its folder. An output layer among them is not tied to
            the embeddings, whatever the two configurations say.
    """
    text = copy.deepcopy(causal_config(config))
    tied = [getattr(part, "tie_word_embeddings", False) for part in (config, text)]
    has_output_layer = any(name.endswith("lm_head.weight") for name in stored)
    text.tie_word_embeddings = any(tied) and not has_output_layer
    if quantization := getattr(config, "quantization_config", None):
        text.quantization_config = quantization
    return text


def count_weights(config: PreTrainedConfig) -> int:
    """Number of weights of the causal language model of such a configuration; takes no memory."""
    import torch

    kind: Any = model_class(config)
    with torch.device("meta"):
        model = kind._from_config(copy.deepcopy(causal_config(config)))
    return sum(int(weight.numel()) for weight in model.parameters())


def why_not_causal(config: PreTrainedConfig) -> str | None:
    """Why Transformers loads no causal language model for such a configuration, or None."""
    if reason := _why_other_weights(config):
        return reason
    if _find_class(config) is not None:
        return None
    kind, text = config.model_type, config.get_text_config(decoder=True)
    if text is not config:
        return (
            f"{kind} wraps a language model ({text.model_type}) that Transformers cannot load "
            "alone: name a model for text"
        )
    return f"{kind} is not a causal language model of Transformers: name one"


def stored_names(folder: Path) -> set[str]:
    """The names of all weights in a model's folder."""
    from safetensors import safe_open

    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            names |= set(weights.keys())
    return names


def _why_other_weights(config: PreTrainedConfig) -> str | None:
    """Why the weights are not those of the class that would be loaded, judged by the stored name.

    A class of another name may well have the same weights; only those that cannot are refused.
    """
    kind, stored = config.model_type, (getattr(config, "architectures", None) or [""])[0]
    if stored.endswith(_CLASSIFIERS):
        return (
            f"{kind} is a classifier here ({stored}), which writes no text: name a model that does"
        )
    expected = _find_class(config)
    if expected is None or is_wrapped(config) or config.is_encoder_decoder:
        return None
    if stored.endswith("ForConditionalGeneration") and stored != expected.__name__:
        return (
            f"{kind} is stored as {stored}, which needs more than the tokens of a text: name a "
            "model for text"
        )
    return None


def _find_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    return _mapped_class(causal_config(config)) or _mapped_class(config)


def _mapped_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    classes = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    kind: type[PreTrainedModel] | None = classes[0] if isinstance(classes, tuple) else classes
    return kind
