"""Stacked queries give what Transformers' own attention gives."""

from __future__ import annotations

import pytest
import torch
from conftest import save_model
from helpers.architectures import INDEXED, PROMPT, save_tiny, tiny_config
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from safedraft.engines.transformers.session import TransformersSession
from safedraft.kernels import attention
from safedraft.kernels.attention import MAX_ROWS, NAME, attend_stacked, use_stacked_attention


@pytest.fixture
def models(tmp_path):
    save_model(tmp_path)
    plain, stacked = (LlamaForCausalLM.from_pretrained(tmp_path).eval() for _ in range(2))
    use_stacked_attention(stacked)
    return plain, stacked


def test_sessions_say_the_same_and_rewind_the_same(models):
    plain, stacked = (TransformersSession(model, "model", 264) for model in models)
    generator = torch.Generator().manual_seed(0)
    for length in (40, 1, 5, 1, 1, MAX_ROWS + 1, 3):
        ids = torch.randint(264, (length,), generator=generator).tolist()
        expected, found = (session.forward(ids, length) for session in (plain, stacked))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        for session in (plain, stacked):
            session.rewind(length // 2)


def test_a_batch_with_padding_too(models):
    ids = torch.randint(264, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[0] * 4 + [1] * 5, [1] * 9])
    expected, found = (m(input_ids=ids, attention_mask=mask).logits[mask.bool()] for m in models)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_only_blocks_are_stacked(models, monkeypatch):
    calls = []
    monkeypatch.setattr(attention, "_attend_with_sdpa", lambda *given: calls.append(given) or "own")
    module = torch.nn.Module().eval()
    key = torch.zeros(1, 2, 50, 8)
    mask = torch.ones(1, 1, 4, 50, dtype=torch.bool)
    output, _ = attend_stacked(module, torch.zeros(1, 4, 4, 8), key, key, mask)
    assert output.shape == (1, 4, 4, 8)
    assert not calls
    for query, given in (
        (torch.zeros(1, 4, MAX_ROWS + 1, 8), None),
        (torch.zeros(1, 4, 4, 8), None),
        (torch.zeros(1, 2, 4, 8), mask),
    ):
        assert attend_stacked(module, query, key, key, given) == "own"
    assert attend_stacked(module, torch.zeros(1, 4, 4, 8), key, key, mask, dropout=0.1) == "own"


def test_another_implementation_is_left_alone(tmp_path):
    save_model(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    use_stacked_attention(model)
    assert model.config._attn_implementation == "eager" != NAME


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("deepseek_v32", {**INDEXED, "n_group": 1, "topk_group": 1}),
        ("glm_moe_dsa", {**INDEXED, "n_group": 1, "topk_group": 1}),
        ("dots3_note_text", {**INDEXED, "n_group": 1, "topk_group": 1}),
        (
            "minimax_m3_vl_text",
            {
                "layer_types": ["minimax_m3_sparse", "full_attention"],
                "index_n_heads": 4,
                "index_head_dim": 16,
                "index_block_size": 4,
                "index_topk_blocks": 2,
            },
        ),
    ],
)
def test_a_model_that_asks_for_sdpa_by_name_is_left_alone(tmp_path, kind, settings):
    save_tiny(tmp_path, tiny_config(kind, eos_token_id=0, **settings))
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        before = model(ids).logits
        use_stacked_attention(model)
        assert torch.equal(model(ids).logits, before)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["mistral", "phi3", "qwen3"])
def test_others_are_changed(tmp_path, kind):
    save_tiny(tmp_path, tiny_config(kind))
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    use_stacked_attention(model)
    assert model.config._attn_implementation == NAME
