"""Weights in 8 bits give nearly what the weights give, for one row and for many."""

from __future__ import annotations

import pytest
import torch
from conftest import save_model
from helpers.architectures import save_tiny, tiny_config
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from safedraft.kernels.int8 import MAX_ROWS, MULTIPLE, Int8Linear, use_int8_layers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, MAX_ROWS, MAX_ROWS + 1])
def test_a_layer_is_close_to_the_one_it_replaces(rows, bias, dtype):
    torch.manual_seed(0)
    layer = nn.Linear(96, 9000, bias=bias).to(dtype)
    inputs = torch.randn(1, rows, 96).to(dtype)
    expected, found = layer(inputs), Int8Linear(layer)(inputs)
    assert found.shape == expected.shape
    assert found.dtype == dtype
    assert (found - expected).float().norm() < 0.02 * expected.float().norm()


def test_both_ways_to_multiply_give_the_same():
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(64, 32))
    rows = torch.randn(MAX_ROWS + 1, 64)
    one_by_one = torch.cat([layer(row[None]) for row in rows])
    torch.testing.assert_close(one_by_one, layer(rows), atol=1e-5, rtol=1e-4)


def test_a_row_of_zeros_stays_one():
    layer = nn.Linear(8, 4, bias=False)
    with torch.no_grad():
        layer.weight[2] = 0
    found = Int8Linear(layer)(torch.ones(1, 8))
    assert found.isfinite().all()
    assert found[0, 2] == 0


def test_layers_that_the_kernel_cannot_take_stay_as_they_are():
    model = nn.Sequential(nn.Linear(MULTIPLE + 16, 8), nn.Linear(MULTIPLE, 8))
    use_int8_layers(model)
    assert [type(layer) for layer in model] == [nn.Linear, Int8Linear]


def test_a_model_keeps_its_embeddings_and_most_of_its_mind(tmp_path):
    save_model(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(264, (1, 20), generator=torch.Generator().manual_seed(0))
    embeddings = model.get_input_embeddings().weight.clone()
    before = model(ids).logits.softmax(-1)
    use_int8_layers(model)
    after = model(ids).logits.softmax(-1)
    assert not any(type(layer) is nn.Linear for layer in model.modules())
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    assert 0 < (before - after).abs().sum(-1).mean() < 0.1


@pytest.mark.parametrize("kind", ["mixtral", "olmoe", "qwen3_moe"])
def test_the_experts_of_a_mixture_keep_their_weights(tmp_path, kind):
    save_tiny(tmp_path, tiny_config(kind))
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    experts = {
        name: weight.clone() for name, weight in model.named_parameters() if "experts" in name
    }
    use_int8_layers(model)
    after = dict(model.named_parameters())
    assert experts
    assert all(torch.equal(after[name], weight) for name, weight in experts.items())
    assert not any(type(layer) is nn.Linear for layer in model.modules())
