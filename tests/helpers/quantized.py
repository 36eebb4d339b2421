"""What the engine cpu computes, written out in torch: weights and rows as 8-bit numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama with biases": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "llama 3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "mistral": {"sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 24},
    "granite": {
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.3,
        "embedding_multiplier": 5.0,
        "logits_scaling": 3.0,
    },
    "olmo2": {},
}
"""Families that the engine runs, each with what sets it apart."""

VOCABULARY = 301


def build(family: str, **settings: Any) -> Any:
    """A tiny random model of a family, in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    config = AutoConfig.for_model(family.split()[0], **(sizes | FAMILIES[family] | settings))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data.uniform_(0.5, 1.5)
        else:
            weight.data.normal_(0, 0.3 if "bias" in name else 0.15)
    return model


def quantize(model: Any) -> Any:
    """Round the model's weights, and the rows that come into its layers, to 8-bit numbers."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(_round(module.weight.detach()))
            module.register_forward_pre_hook(lambda _, rows: (_round(rows[0]),))
    embedding = model.get_input_embeddings()
    embedding.weight = nn.Parameter(_round(embedding.weight.detach()))
    return model


def _round(numbers: Tensor) -> Tensor:
    scale = numbers.abs().amax(-1, keepdim=True) / 127
    return (numbers / scale).round() * scale
