"""Tiny random models of any architecture of Transformers, in folders, and what they continue."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

import safedraft
from safedraft.core.config import SamplingParams, SSDConfig

ROWS = 300
"""Size of the vocabularies."""

PROMPT = torch.randint(ROWS, (40,), generator=torch.Generator().manual_seed(2)).tolist()
"""Longer than every window of ``SMALL``."""

NEW_TOKENS = 24

SMALL: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "sliding_window": 9,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""Settings of a configuration, where its kind has them."""

LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
}
"""Attention to compressed keys and values."""

INDEXED: dict[str, Any] = {**LATENT, "index_topk": 8, "index_n_heads": 32, "index_head_dim": 16}
"""Attention to the keys that an index chooses. Fewer heads would make ties between keys."""


def tiny_config(kind: str, **settings: Any) -> Any:
    """A configuration of ``SMALL`` with other ``settings``, which may be unknown to its class."""
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[kind]
    known = {field.name for field in fields(config_class)} | {*config_class.attribute_map}
    small = {name: value for name, value in SMALL.items() if name in known}
    return config_class(**{**small, **settings})


def save_tiny(folder: Path, config: Any, auto_class: Any = None) -> None:
    """Save a random model in float32, no two weights of which are equal."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = (auto_class or AutoModelForCausalLM).from_config(config).float()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    if model.generation_config is not None:
        model.generation_config.forced_eos_token_id = None
    model.save_pretrained(folder)


def own_tokens(folder: Path, auto_class: Any = None, **options: Any) -> list[int]:
    """What Transformers' greedy ``generate`` continues ``PROMPT`` with."""
    from transformers import AutoModelForCausalLM

    auto_class = auto_class or AutoModelForCausalLM
    model = auto_class.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    ids = torch.tensor([PROMPT])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS,
        pad_token_id=0, **options,
    )  # fmt: skip
    return output[0, len(PROMPT) :].tolist()


def load_twice(folder: Path) -> safedraft.Pair:
    """A pair of one model as target and draft."""
    return safedraft.load_pair(target=folder, draft=folder, use_adapter=False, dtype="float32")


def ssd_tokens(pair: safedraft.Pair, draft_tokens: int) -> list[int]:
    """What SSD continues ``PROMPT`` with in blocks of ``draft_tokens``."""
    stream = pair.stream_ids(
        PROMPT,
        sampling=SamplingParams(max_new_tokens=NEW_TOKENS),
        config=SSDConfig(draft_tokens=draft_tokens),
    )
    return [token.id for token in stream]
