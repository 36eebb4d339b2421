"""GGUF files of tiny models, written as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from transformers import AutoModelForCausalLM

from helpers.architectures import tiny_config

NAMES = {
    "embed_tokens": "token_embd", "lm_head": "output", "norm": "output_norm",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "qkv_proj": "attn_qkv", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    "gate_up_proj": "ffn_up",
}  # fmt: skip
"""The names of modules in a file."""

SANDWICH = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
"""The names of normalizations where there is one after each part of a layer."""

KEYS = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "vocab_size": "vocab_size",
    "head_dim": "attention.key_length",
    "embedding_multiplier": "embedding_scale",
    "attention_multiplier": "attention.scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
"""The keys of settings that a configuration may have."""

WINDOWED = ("gemma2", "gemma3", "phi3")
"""Architectures whose window is written."""

BYTES = [
    *(chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))),
    *(chr(256 + place) for place in range(68)),
]
"""The letters in which byte-level tokenizers write bytes, in GPT-2's order."""

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def make(kind: str = "llama", **settings: Any) -> Any:
    """A random model, no two weights of which are equal."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **settings)).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return model


def write_gguf(
    file: Path,
    model: Any,
    architecture: str,
    kind: str = "F32",
    tokenizer: Any = True,
    **added: Any,
) -> None:
    """Write a model with a byte-level tokenizer; ``kind`` is the type of its matrices.

    ``added`` are further keys and their values, those with None are left out.
    """
    writer = GGUFWriter(file, architecture)
    values = settings_of(model.config, architecture)
    if tokenizer:
        values |= tokenizer_of(model.config.vocab_size)
    for key, value in (values | added).items():
        if value is not None:
            add_value(writer, key, value)
    for name, weight in tensors_of(model, architecture):
        own = GGMLQuantizationType[kind if weight.ndim > 1 else "F32"]
        writer.add_tensor(name, quantize(weight, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_value(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def settings_of(config: Any, architecture: str) -> dict[str, Any]:
    """The settings of a configuration by their keys in a file."""
    values = {key: getattr(config, name, None) for name, key in KEYS.items()}
    rope = rope_of(config)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values["rope.freq_base"] = float(rope["rope_theta"])
    values["rope.dimension_count"] = int(head * rope.get("partial_rotary_factor", 1.0))
    if architecture in WINDOWED:
        values["attention.sliding_window"] = config.sliding_window or 0
    if rope["rope_type"] in ("linear", "yarn"):
        values["rope.scaling.type"] = rope["rope_type"]
        values["rope.scaling.factor"] = float(rope["factor"])
    if "original_max_position_embeddings" in rope and rope["rope_type"] != "llama3":
        original = rope["original_max_position_embeddings"]
        values["rope.scaling.original_context_length"] = original
    return {f"{architecture}.{key}": value for key, value in values.items()}


def rope_of(config: Any) -> dict[str, Any]:
    """The rotary parameters, of the layers without a window if there are others."""
    rope: dict[str, Any] = config.rope_parameters
    return rope.get("full_attention", rope)


def tokenizer_of(rows: int, split: str = "qwen2") -> dict[str, Any]:
    """A tokenizer of one token a byte and one of two bytes, and unused tokens up to ``rows``."""
    known = [*BYTES, "he", *CONTROL]
    tokens = [*known, *(f"[PAD{id}]" for id in range(len(known), rows))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in CONTROL else 1 for token in known]
        + [5] * (rows - len(known)),
        "tokenizer.ggml.merges": ["h e"],
        "tokenizer.ggml.eos_token_id": known.index("<|im_end|>"),
        "tokenizer.ggml.padding_token_id": known.index("<|endoftext|>"),
        "tokenizer.chat_template": TEMPLATE,
    }


def tensors_of(model: Any, architecture: str) -> list[tuple[str, np.ndarray]]:
    """The tensors of a model as a file has them."""
    names = NAMES | (SANDWICH if architecture in ("gemma2", "gemma3", "olmo2") else {})
    config, tensors = model.config, []
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        *path, module, suffix = name.split(".")
        layer = f"blk.{path[2]}." if "layers" in path else ""
        array = weight.float().numpy()
        if architecture.startswith("gemma") and "norm" in module:
            array = array + 1
        if architecture in ("llama", "granite") and module in ("q_proj", "k_proj"):
            own = "num_attention_heads" if module == "q_proj" else "num_key_value_heads"
            array = interleave(array, getattr(config, own))
        tensors.append((f"{layer}{names[module]}.{suffix}", array))
    return tensors + rotary_tensors(config)


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Alternate the two halves of each head's rows, as llama.cpp has them."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def rotary_tensors(config: Any) -> list[tuple[str, np.ndarray]]:
    """The divisors of the rotary frequencies, if there are some."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = rope_of(config)
    if rope["rope_type"] == "llama3":
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        exponents = torch.arange(len(scaled)) / len(scaled)
        divisors = 1 / (scaled * rope["rope_theta"] ** exponents)
        return [("rope_freqs.weight", divisors.float().numpy())]
    if rope["rope_type"] == "longrope":
        return [
            (f"rope_factors_{length}.weight", np.float32(rope[f"{length}_factor"]))
            for length in ("long", "short")
        ]
    return []


def quantize(weight: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """The bytes or numbers of a tensor of that type."""
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    return _q6_k(weight) if kind.name == "Q6_K" else quants.quantize(weight, kind)


def _q6_k(weight: np.ndarray) -> np.ndarray:
    """Round to steps of a 16-number group, as ggml's simplest Q6_K."""
    blocks = weight.reshape(-1, 16, 16)
    steps = np.abs(blocks).max(-1) / 31
    unit = np.float16(steps.max(-1, keepdims=True) / 127)
    scales = np.round(steps / np.float32(unit))
    divisor = np.maximum(np.float32(unit) * scales, 1e-9)[..., None]
    codes = np.clip(np.round(blocks / divisor), -32, 31).astype(np.int8) + 32
    parts = codes.astype(np.uint8).reshape(-1, 2, 4, 32)
    low = np.concatenate([parts[:, :, :2] & 15 | (parts[:, :, 2:] & 15) << 4], axis=-1)
    high = sum((parts[:, :, part] >> 4) << 2 * part for part in range(4))
    packed = [
        low.reshape(len(blocks), -1),
        np.uint8(high).reshape(len(blocks), -1),
        scales.astype(np.int8).view(np.uint8),
        unit.view(np.uint8),
    ]
    return np.concatenate(packed, axis=1).reshape(weight.shape[0], -1)
