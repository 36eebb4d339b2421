"""The model in a GGUF file: its configuration and weights, as Transformers has them.

A setting or a tensor that is not known here is refused: to ignore it could change the model without
notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safedraft.models.causal import model_class
from safedraft.models.gguf import GgufHeader, read_tensor

if TYPE_CHECKING:
    import torch
    from numpy import ndarray
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class _Family:
    """The name of a GGUF architecture in Transformers, and the differences between the weights."""

    model_type: str
    interleaved: bool = False
    """Whether the two halves of a head's rotary dimensions alternate in the file."""
    norm_offset: float = 0.0
    """Number that the file adds to the weights of normalizations."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Names of further settings in the file and in Transformers; a file need not have them."""


_WINDOW = {"attention.sliding_window": "sliding_window"}
_ORIGINAL_CONTEXT = {"rope.scaling.original_context_length": "original_max_position_embeddings"}
_SOFTCAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_SCALES = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}

_LOCAL_THETA = "rope_local_theta"
"""Our name of a setting that is none of Transformers' own."""

_FAMILIES = {
    "gemma": _Family("gemma", norm_offset=1),
    "gemma2": _Family("gemma2", norm_offset=1, settings={**_WINDOW, **_SOFTCAPS}),
    "gemma3": _Family(
        "gemma3_text",
        norm_offset=1,
        settings={**_WINDOW, **_SOFTCAPS, "rope.freq_base_swa": _LOCAL_THETA},
    ),
    "granite": _Family("granite", interleaved=True, settings=_SCALES),
    "llama": _Family("llama", interleaved=True),
    "olmo2": _Family("olmo2"),
    "phi3": _Family("phi3", settings={**_WINDOW, **_ORIGINAL_CONTEXT}),
    "qwen2": _Family("qwen2"),
    "qwen3": _Family("qwen3"),
}
"""The families that are read, by the architecture that a file names."""

_SETTINGS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
"""Names of the settings that every file must have, in the file and in Transformers."""

_READ = {
    "attention.key_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
}
"""Further settings that are read, whatever the family is."""

_UNUSED = {"attention.value_length", "rope.scaling.finetuned", "tensor_data_layout", "vocab_size"}
"""Settings that follow from others or from the shapes of tensors."""

_ROPE_FACTORS = "rope_freqs.weight"
_LONG_FACTORS = "rope_factors_long.weight"
_SHORT_FACTORS = "rope_factors_short.weight"

_TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id",
           "padding_token_id": "pad_token_id"}  # fmt: skip

_LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Numbers of layers of the models whose attention is scaled by the width of the model.

A file does not say it: llama.cpp as well decides by the number of layers.
"""


def read_config(header: GgufHeader) -> PreTrainedConfig:
    """Return the configuration of the model in a file.

    Raises:
        SafeDraftError: its family is not read, or a setting is missing or unknown.
    """
    from transformers import CONFIG_MAPPING

    family = _FAMILIES.get(header.architecture)
    if family is None:
        raise header.refusal(
            f"the architecture {header.architecture} is not read from GGUF files, only "
            f"{', '.join(_FAMILIES)}: name the model's folder of safetensors"
        )
    _require_known_settings(header, family)
    names = {**_SETTINGS, **family.settings}
    settings = {names[key]: value for key, value in header.settings.items() if key in names}
    for key, name in _TOKENS.items():
        settings[name] = header.metadata.get(f"tokenizer.ggml.{key}")
    width = settings["hidden_size"] // settings["num_attention_heads"]
    head = header.settings.get("attention.key_length", width)
    settings["rope_parameters"] = rope = _rope_parameters(header, head)
    if "sliding_window" in settings:  # Phi-4 has one of length 0
        settings["sliding_window"] = settings["sliding_window"] or None
    if layers := _LARGEST_GEMMA.get(header.architecture):
        is_largest = settings["num_hidden_layers"] == layers
        settings["query_pre_attn_scalar"] = width if is_largest else head
    if header.architecture == "gemma3":
        local = {"rope_type": "default", "rope_theta": settings.pop(_LOCAL_THETA, 10000.0)}
        settings["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    return CONFIG_MAPPING[family.model_type](
        **settings,
        vocab_size=header.tensors["token_embd.weight"].shape[0],
        head_dim=head,
        tie_word_embeddings="output.weight" not in header.tensors,
        dtype=header.dtype,
    )


def _require_known_settings(header: GgufHeader, family: _Family) -> None:
    known = {*_SETTINGS, *_READ, *_UNUSED, *family.settings}
    if unknown := sorted(header.settings.keys() - known):
        raise header.refusal(
            f"its setting {unknown[0]} is not read from GGUF files: name the model's folder of "
            "safetensors"
        )
    if missing := sorted(_SETTINGS.keys() - header.settings.keys()):
        raise header.refusal(f"it lacks the setting {missing[0]}: convert the model again")
    if "token_embd.weight" not in header.tensors:
        raise header.refusal("it holds no embeddings of tokens: take a file with a whole model")


def _rope_parameters(header: GgufHeader, head: int) -> dict[str, Any]:
    """Return the parameters of the rotary positions; ``head`` is the width of a head."""
    settings, tensors = header.settings, header.tensors
    rotated = settings.get("rope.dimension_count", head)
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": settings.get("rope.freq_base", 10000.0),
    }
    scaling = settings.get("rope.scaling.type", "none")
    if header.architecture == "phi3":
        rope["partial_rotary_factor"] = rotated / head
    elif rotated != head:
        raise header.refusal(
            f"it rotates {rotated} of {head} dimensions of a head, which is read from files of "
            "phi3 only: name the model's folder of safetensors"
        )
    if _LONG_FACTORS in tensors:
        return rope | _long_factors(header)
    if _ROPE_FACTORS in tensors:
        return rope | _llama3_factors(header, rope["rope_theta"])
    if scaling == "none":
        return rope
    if scaling not in ("linear", "yarn") or "rope.scaling.attn_factor" in settings:
        raise header.refusal(
            f"its scaling of positions ({scaling}) is not read from GGUF files: name the model's "
            "folder of safetensors"
        )
    rope |= {"rope_type": scaling, "factor": settings["rope.scaling.factor"]}
    if scaling == "yarn":
        original = settings["rope.scaling.original_context_length"]
        rope["original_max_position_embeddings"] = original
    return rope


def _long_factors(header: GgufHeader) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "long_factor": read_tensor(header, header.tensors[_LONG_FACTORS]).tolist(),
        "short_factor": read_tensor(header, header.tensors[_SHORT_FACTORS]).tolist(),
        "attention_factor": header.settings.get("rope.scaling.attn_factor"),
        "original_max_position_embeddings": header.settings["rope.scaling.original_context_length"],
    }


def _llama3_factors(header: GgufHeader, theta: float) -> dict[str, Any]:
    """Return the parameters from which llama.cpp computed the factors of a Llama 3.

    Raises:
        SafeDraftError: the factors are others.
    """
    import numpy

    stored = read_tensor(header, header.tensors[_ROPE_FACTORS])
    wavelengths = 2 * numpy.pi * theta ** (numpy.arange(len(stored)) / len(stored))
    factor = float(stored.max())
    smooth = (8192 / wavelengths - 1) / (4 - 1)
    expected = 1 / ((1 - smooth.clip(0, 1)) / factor + smooth.clip(0, 1))
    if not numpy.allclose(stored, expected, rtol=1e-4):
        raise header.refusal(
            "its factors of rotary frequencies are not those of Llama 3: name the model's folder "
            "of safetensors"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def read_weights(
    header: GgufHeader, config: PreTrainedConfig, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return the weights of the model in a file by their names in Transformers.

    Each is unpacked to float32 and converted to ``dtype`` before the next one is.

    Raises:
        SafeDraftError: the file holds weights that the model does not have.
    """
    import numpy
    import torch

    names = _transformers_names(header, config)
    unknown = header.tensors.keys() - names - {_ROPE_FACTORS, _LONG_FACTORS, _SHORT_FACTORS}
    if unknown:
        raise header.refusal(
            f"{config.model_type} of Transformers has no place for {len(unknown)} of its weights "
            f"({min(unknown)}): name the model's folder of safetensors"
        )
    weights = {}
    for name, tensor in header.tensors.items():
        if name in names:
            weight = _restore(read_tensor(header, tensor), name, config)
            writable = numpy.require(weight, requirements="W")  # if not packed, it is in the file
            weights[names[name]] = torch.from_numpy(writable).to(dtype)
    return weights


def _transformers_names(header: GgufHeader, config: PreTrainedConfig) -> dict[str, str]:
    """Map the names of tensors in a file to those of the model's weights."""
    import torch
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    numbers = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    stored_names = get_tensor_name_map(numbers[header.architecture], config.num_hidden_layers)
    kind: Any = model_class(config)
    with torch.device("meta"):
        model = kind._from_config(config)
    names = {}
    for name in model.state_dict():
        stem, _, suffix = name.rpartition(".")
        if stored := stored_names.get_name(stem):
            names[f"{stored}.{suffix}"] = name
    return names


def _restore(weight: ndarray, name: str, config: PreTrainedConfig) -> ndarray:
    """Undo what llama.cpp changed in a weight; ``name`` is its name in the file."""
    family = next(kind for kind in _FAMILIES.values() if kind.model_type == config.model_type)
    if family.norm_offset and name.endswith("norm.weight"):
        return weight - family.norm_offset
    part = name.split(".")[-2]
    if not family.interleaved or part not in ("attn_q", "attn_k"):
        return weight
    heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
    halves = weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2)
    return halves.reshape(weight.shape)
