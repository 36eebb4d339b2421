"""With one model as target and draft, SSD gives the tokens that Transformers gives.

That holds in every architecture that is decoded, at every length of the blocks; the others are
refused by name, by the checks of a pair and by loading alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.architectures import (
    INDEXED,
    LATENT,
    ROWS,
    load_twice,
    own_tokens,
    save_tiny,
    ssd_tokens,
    tiny_config,
)

pytestmark = pytest.mark.slow

DECODER = {"decoder_layers": 2, "decoder_ffn_dim": 64, "decoder_attention_heads": 4, "d_model": 32}
"""Decoders of encoder-decoder families, alone."""

GROUPS = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
"""Groups of experts."""

ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"]}

PER_LAYER = {**ALTERNATING, "vocab_size_per_layer_input": ROWS, "hidden_size_per_layer_input": 8}

DECODED: dict[str, dict[str, Any]] = {
    "afmoe": {},
    "apertus": {},
    "arcee": {},
    "aria_text": {},
    "axk2": INDEXED,
    "bart": DECODER,
    "beam": {},
    "biogpt": {},
    "bitnet": {},
    "blenderbot": DECODER,
    "bloom": {},
    "codegen": {"rotary_dim": 4},
    "cohere": {},
    "cohere2": {},
    "cohere2_moe": {},
    "ctrl": {"dff": 64},
    "cwm": {"bos_token_id": 0, "eos_token_id": 299, "pad_token_id": 0},
    "dbrx": {
        "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {**LATENT, **GROUPS},
    "deepseek_v3": {**LATENT, **GROUPS},
    "deepseek_v32": {**INDEXED, **GROUPS},
    "diffllama": {},
    "doge": {},
    "dots1": {**GROUPS, "n_shared_experts": 1},
    "dots3_note_text": {**INDEXED, **GROUPS},
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": {},
    "exaone_moe": {},
    "falcon": {},
    "flex_olmo": {},
    "flint": {},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": ALTERNATING,
    "gemma3n_text": {**PER_LAYER, "num_kv_shared_layers": 0, "laurel_rank": 8, "altup_num_inputs": 2},
    "gemma4_text": {
        **PER_LAYER, "num_hidden_layers": 4, "layer_types": 2 * ALTERNATING["layer_types"],
        "num_kv_shared_layers": 2, "global_head_dim": 16,
    },
    "gemma4_unified_text": ALTERNATING,
    "glm": {"eos_token_id": 299},
    "glm4": {"eos_token_id": 299},
    "glm4_moe": {},
    "glm4_moe_lite": LATENT,
    "glm_moe_dsa": {**INDEXED, **GROUPS, "eos_token_id": 299},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 9},
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": {},
    "gptj": {"rotary_dim": 4},
    "granite": {},
    "granite_swa": {},
    "granitemoe": {},
    "granitemoe_swa": {},
    "granitemoehybrid": {
        "layer_types": ["attention"] * 2, "mamba_n_heads": 4, "mamba_d_head": 16,
        "shared_intermediate_size": 32,
    },
    "granitemoeshared": {"shared_intermediate_size": 32},
    "helium": {},
    "hrm_text": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "hy_v3": {},
    "hy_v4": {**INDEXED, **GROUPS},
    "hyperclovax": {},
    "jais2": {},
    "jetmoe": {},
    "kolibri1": {},
    "laguna": {},
    "llama": {},
    "llama4_text": {"attention_chunk_size": 16, "no_rope_layers": [1, 0]},
    "marian": DECODER,
    "mellum": {},
    "mimo_v2_flash": {},
    "minicpm3": LATENT,
    "minimax_m2": {},
    "minimax_m3_vl_text": {
        "layer_types": ["minimax_m3_sparse", "full_attention"], "index_n_heads": 4,
        "index_head_dim": 16, "index_block_size": 4, "index_topk_blocks": 2,
    },
    "ministral": {},
    "ministral3": {},
    "mistral": {},
    "mixtral": {},
    "modernbert-decoder": {
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 299, "cls_token_id": 1,
        "sep_token_id": 2, "local_attention": 16, "global_attn_every_n_layers": 2,
    },
    "mpt": {},
    "nanochat": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmoe": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.3},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "plbart": DECODER,
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": {"shared_expert_intermediate_size": 32},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3_moe": {},
    "seed_oss": {},
    "smollm3": {},
    "solar_open": {},
    "stablelm": {},
    "starcoder2": {},
    "trocr": {},
    "vaultgemma": {},
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
    "youtu": LATENT,
}  # fmt: skip


@pytest.mark.parametrize("kind", DECODED)
def test_the_tokens_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    save_tiny(tmp_path, tiny_config(kind, **DECODED[kind]))
    expected = own_tokens(tmp_path)
    assert len(set(expected)) > 4, "tokens that hardly change show nothing"
    pair = load_twice(tmp_path)
    for draft_tokens in (1, 4):
        assert ssd_tokens(pair, draft_tokens) == expected
