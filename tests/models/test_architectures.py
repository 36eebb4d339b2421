"""With one model as target and draft, SSD gives the tokens that Transformers gives.

That holds in every architecture that is decoded, at every length of the blocks; the others are
refused by name, by the checks of a pair and by loading alike.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.architectures import (
    INDEXED,
    LATENT,
    NEW_TOKENS,
    PROMPT,
    ROWS,
    load_twice,
    own_tokens,
    save_tiny,
    ssd_tokens,
    tiny_config,
)
from helpers.trees import TREE, path_to
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import safedraft
from safedraft.core.errors import IncompatiblePairError
from safedraft.engines.transformers import session
from safedraft.models.compatibility import check_compatibility
from safedraft.models.description import read_description
from safedraft.models.rewindable import why_no_trees

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
    "axk1": {**LATENT, "n_group": 1, "topk_group": 1, "qk_head_dim": 16},
    "axk2": INDEXED,
    "bart": DECODER,
    "beam": {},
    "bert": {"is_decoder": True},
    "bert-generation": {"is_decoder": True},
    "biogpt": {},
    "bitnet": {},
    "blenderbot": DECODER,
    "blenderbot-small": DECODER,
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
    "electra": {"is_decoder": True},
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
    "gemma3n_text": {
        **PER_LAYER, "num_kv_shared_layers": 0, "laurel_rank": 8, "altup_num_inputs": 2,
    },
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
    "gpt-sw3": {},
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
    "internlm3": {},
    "iquestcoder": {},
    "jais2": {},
    "jamba": {"attn_layer_period": 1, "attn_layer_offset": 0},
    "jetmoe": {},
    "kolibri1": {},
    "laguna": {},
    "lfm2": {"layer_types": ["full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["full_attention"] * 2},
    "llama": {},
    "llama4_text": {"attention_chunk_size": 16, "no_rope_layers": [1, 0]},
    "longcat_flash": {
        **LATENT, "num_layers": 1, "ffn_hidden_size": 32, "expert_ffn_hidden_size": 16,
        "zero_expert_num": 2, "moe_topk": 2, "head_dim": 8,
    },
    "marian": DECODER,
    "mbart": DECODER,
    "megatron-bert": {"is_decoder": True},
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
    "moshi": {"sliding_window": 512},
    "mpt": {},
    "mvp": DECODER,
    "nanochat": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmoe": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.3},
    "pegasus": DECODER,
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "plbart": DECODER,
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": {"shared_expert_intermediate_size": 32},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3_5_text": {"layer_types": ["full_attention"] * 2},
    "qwen3_moe": {},
    "qwen3_next": {"layer_types": ["full_attention"] * 2},
    "roformer": {"is_decoder": True, "embedding_size": 32},
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
def test_the_tokens_are_those_of_transformers(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PREFILL_CHUNK", 16)
    save_tiny(tmp_path, tiny_config(kind, **DECODED[kind]))
    expected = own_tokens(tmp_path)
    assert len(set(expected)) > 4, "tokens that hardly change show nothing"
    pair = load_twice(tmp_path)
    for draft_tokens in (1, 4):
        assert ssd_tokens(pair, draft_tokens) == expected


RECURRENT = "has recurrent state, which cannot be rewound"
RECURRENT_LAYERS = "has layers whose state cannot be rewound"
BOTH_WAYS = "reads in both directions"


@pytest.mark.parametrize("kind", DECODED)
def test_a_tree_is_refused_or_read_as_its_texts(kind: str) -> None:
    """The logits after every node, and after a path that is kept, against passes afresh."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **DECODED[kind])).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    if reason := why_no_trees(model):
        pytest.skip(reason)
    ids, nodes, path = [5, 17, 3, 80, 9, *range(20, 36)], [11, 12, 13, 14, 15, 16, 18], path_to(5)

    def difference(found: torch.Tensor, text: list[int]) -> float:
        with torch.inference_mode():
            expected = model(torch.tensor([text]), use_cache=False).logits[0, -1].float()
        return float(((found - expected).abs() / (1 + expected.abs())).max())

    tree, chain = (session.TransformersSession(model, kind, ROWS) for _ in range(2))
    rows = tree.forward([*ids, *nodes], len(nodes), TREE[: len(nodes)])
    kept = [*ids, *(nodes[node] for node in path)]
    tree.keep(path)
    chain.forward(kept, 1)
    noise = difference(chain.forward([42], 1)[0], [*kept, 42])
    found = [
        difference(row, [*ids, *(nodes[before] for before in path_to(node))])
        for node, row in enumerate(rows)
    ]
    found.append(difference(tree.forward([42], 1)[0], [*kept, 42]))
    assert max(found) < max(1e-5, 10 * noise)


ENCODER = "is an encoder-decoder"
NO_CACHE = "keeps no cache"
WRAPS = r"wraps a language model \(\w+\) that Transformers cannot load alone"

REFUSED = {
    RECURRENT: """
        bailing_hybrid bamba deepseek_v4 falcon_h1 falcon_mamba jamba kimi_linear mamba mamba2
        minicpmv4_7 nemotron_h nemotron_h_omni olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text
        qwen3_5_text qwen3_next qwen4_exp_text recurrent_gemma rwkv xlstm zamba zamba2 zaya""",
    RECURRENT_LAYERS: "inkling_text inkling2_text lfm3 minimax",
    BOTH_WAYS: """
        bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert paligemma
        reformer rembert roberta roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl
        xmod""",
    ENCODER: """
        bart bigbird_pegasus blenderbot-small marian mbart mvp pegasus prophetnet t5
        t5gemma whisper""",
    NO_CACHE: "gemma4_unified_assistant openai-gpt xlm xlnet",
    WRAPS: """
        ernie4_5_vl_moe glm4v glm4v_moe mistral_large4 qwen2_5_omni qwen2_5_vl qwen2_vl qwen3_vl
        qwen3_vl_moe""",
    "has no cache in Transformers": "blt",
    r"lacks the interface of a causal language model \(.* takes no inputs_embeds\)": "cpmant",
    "is not a causal language model": "mistral4",
}
"""The words of a refusal and the architectures, in their default configurations."""

STORED_AS = {
    "LlamaForSequenceClassification": ("llama", "is a classifier here"),
    "Qwen2ForTokenClassification": ("qwen2", "is a classifier here"),
    "Qwen2ForRewardModel": ("qwen2", "is a classifier here"),
    "Gemma3ForSequenceClassification": ("gemma3", "is a classifier here"),
    "MoshiForConditionalGeneration": ("moshi", "is stored as .*, which needs more than the tokens"),
}
"""Weights that do not belong to the class that would be loaded, by the name of their own."""


def require_refused(config: Any, words: str, folder: Path) -> None:
    """Check that the checks of a pair and loading refuse a model by the same words."""
    config.save_pretrained(folder)
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    description = read_description(folder, "small")
    words = f"small: {config.model_type} {words}"
    checks = check_compatibility(description, description).checks
    assert any(check.status == "failure" and re.match(words, check.detail) for check in checks)
    assert not [check for check in checks if "\n" in check.detail]
    with pytest.raises(IncompatiblePairError, match=words.removeprefix("small: ")):
        load_twice(folder)


@pytest.mark.parametrize(
    ("kind", "words"), [(kind, words) for words, kinds in REFUSED.items() for kind in kinds.split()]
)
def test_what_cannot_be_decoded_is_refused_by_name(kind: str, words: str, tmp_path: Path) -> None:
    require_refused(CONFIG_MAPPING[kind](), words, tmp_path)


@pytest.mark.parametrize("kind", ["lfm2", "lfm2_moe"])
def test_layers_that_are_no_attention_are_refused(kind: str, tmp_path: Path) -> None:
    config = tiny_config(kind, layer_types=["conv", "full_attention"])
    require_refused(config, RECURRENT_LAYERS, tmp_path)


@pytest.mark.parametrize("stored", STORED_AS)
def test_weights_of_another_class_are_refused_by_name(stored: str, tmp_path: Path) -> None:
    kind, words = STORED_AS[stored]
    config = CONFIG_MAPPING[kind]()
    config.architectures = [stored]
    require_refused(config, words, tmp_path)


def test_positions_that_are_counted_anew_are_refused(tmp_path: Path) -> None:
    config = tiny_config("bamba", attn_layer_indices=[0, 1], mamba_n_heads=4, mamba_d_head=16)
    require_refused(config, "counts positions anew in every pass", tmp_path)


def test_a_text_encoder_of_a_decoder_family_is_refused(tmp_path: Path) -> None:
    require_refused(
        tiny_config("gemma3_text", use_bidirectional_attention=True), BOTH_WAYS, tmp_path
    )


@pytest.mark.parametrize("kind", ["llama", "moshi"])
def test_a_window_that_the_attention_ignores_changes_nothing(kind: str, tmp_path: Path) -> None:
    """Transformers' cache would cut the keys off; the attention afresh has none of it."""
    config = tiny_config(kind)
    config.sliding_window = 9
    save_tiny(tmp_path, config)
    expected = own_tokens(tmp_path, use_cache=False)
    pair = load_twice(tmp_path)
    assert expected == ssd_tokens(pair, 1) == ssd_tokens(pair, 4)
    config.sliding_window = 512
    config.save_pretrained(tmp_path)
    assert own_tokens(tmp_path) == expected


BORDER = 50
"""Number of positions before the factors of long texts begin."""


def test_long_factors_are_not_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "PREFILL_CHUNK", 8)
    continued = {}
    for factor in (1.0, 8.0):
        rope = {
            "rope_type": "longrope", "rope_theta": 10000.0, "factor": 8.0,
            "short_factor": [1.0] * 4, "long_factor": [factor] * 4,
        }  # fmt: skip
        config = tiny_config(
            "phi3",
            rope_parameters=rope,
            original_max_position_embeddings=BORDER,
            sliding_window=None,
        )
        save_tiny(tmp_path, config)
        continued[factor] = own_tokens(tmp_path, use_cache=False)
    expected = continued[8.0][: BORDER - len(PROMPT)]
    assert continued[1.0] != continued[8.0]
    assert continued[1.0][: len(expected)] == expected
    pair = load_twice(tmp_path)
    for draft_tokens in (1, 2, 4, 7):
        assert ssd_tokens(pair, draft_tokens) == expected


@pytest.mark.parametrize("draft_tokens", [1, 4])
def test_nor_are_they_inside_transformers_own_generate(tmp_path: Path, draft_tokens: int) -> None:
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "factor": 8.0,
        "short_factor": [1.0] * 4, "long_factor": [8.0] * 4,
    }  # fmt: skip
    settings = {"original_max_position_embeddings": BORDER, "sliding_window": None}
    save_tiny(tmp_path, tiny_config("phi3", rope_parameters=rope, **settings))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.tensor([PROMPT])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False,
        pad_token_id=0, custom_generate=safedraft.ssd_generate, draft_model=model,
        ssd_config=safedraft.SSDConfig(draft_tokens=draft_tokens),
    )  # fmt: skip
    expected = own_tokens(tmp_path, use_cache=False)[: BORDER - len(PROMPT)]
    assert output[0, len(PROMPT) :].tolist() == expected
