"""Products for processors without AVX-512, whatever this one is: the same sums as torch's."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import save_model
from torch import nn
from transformers import LlamaForCausalLM

from safedraft.kernels import avx2
from safedraft.kernels.avx2 import Bfloat16Linear, multiply, use_avx2_layers
from safedraft.kernels.int8 import Int8Linear, use_int8_layers

pytest.importorskip("numba")


@pytest.fixture
def helping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avx2, "is_available", lambda: True)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow  # compiles a kernel for each number of rows
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 13])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (37, 29), (64, 100), (6, 5000)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_a_product_is_that_of_the_same_numbers_in_float32(shape, rows, dtype):
    torch.manual_seed(0)
    weight = (50 * torch.randn(shape)).clamp(-127, 127).to(dtype)
    inputs = torch.randn(rows, shape[1]).bfloat16()
    expected = inputs.double() @ weight.double().T
    found = multiply(inputs, weight)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-2)


def test_what_is_not_a_number_stays_so():
    rows = torch.tensor([[float("nan"), 1.0], [float("inf"), 1.0], [1.0, 1.0]])
    found = multiply(rows, torch.ones(5, 2).bfloat16())
    assert found[0].isnan().all()
    assert found[1].isinf().all()
    assert (found[2] == 2).all()


def test_rows_and_weights_may_lie_anywhere():
    torch.manual_seed(0)
    weight = torch.randn(12, 8).bfloat16()[4:]
    inputs = torch.randn(8, 5).T
    torch.testing.assert_close(multiply(inputs, weight), inputs @ weight.float().T)


@pytest.mark.parametrize(
    ("rows", "weight"),
    [
        (torch.ones(2, 4), torch.ones(3, 8).bfloat16()),
        (torch.ones(2, 8), torch.ones(3, 8)),
        (torch.ones(2, 8), torch.ones(8, 3).bfloat16().T),
        (torch.ones(2, 8), torch.ones(3, 8, dtype=torch.bfloat16, device="meta")),
        (torch.ones(2, 8, device="meta"), torch.ones(3, 8).bfloat16()),
    ],
)
def test_what_would_be_read_past_its_end_is_refused(rows, weight):
    with pytest.raises(ValueError, match="weights o"):
        multiply(rows, weight)


def test_a_layer_that_became_something_else_is_torch_s_again():
    layer = nn.Linear(8, 4).bfloat16()
    layer.__class__ = Bfloat16Linear
    layer.float()
    rows = torch.randn(2, 8)
    with torch.inference_mode():
        torch.testing.assert_close(layer(rows), rows @ layer.weight.T + layer.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_rounds_once_and_keeps_its_shape(bias):
    torch.manual_seed(0)
    layer = nn.Linear(96, 50, bias=bias).bfloat16()
    inputs = torch.randn(2, 3, 96).bfloat16()
    expected = layer.float()(inputs.float()).bfloat16()
    layer.bfloat16().__class__ = Bfloat16Linear
    with torch.inference_mode():
        found = layer(inputs)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.001)


def test_gradients_are_torch_s_own():
    torch.manual_seed(0)
    plain, wide = nn.Linear(16, 8).bfloat16(), nn.Linear(16, 8).bfloat16()
    wide.load_state_dict(plain.state_dict())
    wide.__class__ = Bfloat16Linear
    inputs = torch.randn(4, 16).bfloat16()
    for layer in (plain, wide):
        layer(inputs).square().sum().backward()
    assert torch.equal(wide.weight.grad, plain.weight.grad)


@pytest.mark.usefixtures("helping")
def test_layers_in_8_bits_are_computed_so_too():
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(64, 32))
    rows = torch.randn(20, 64)
    expected = rows @ (layer.weight * layer.scale[:, None]).T + layer.bias
    torch.testing.assert_close(layer(rows), expected)


@pytest.mark.parametrize(("helps", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_what_is_not_in_8_bits_is_float32_only_there(monkeypatch, helps, dtype):
    monkeypatch.setattr(avx2, "is_available", lambda: helps)
    model = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 4)).bfloat16()
    use_int8_layers(model)
    assert {weight.dtype for weight in model.parameters()} == {dtype, torch.int8}
    assert model(torch.ones(1, 32, dtype=dtype)).dtype == dtype


@pytest.mark.usefixtures("helping")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_model_in_bfloat16_says_the_same(tmp_path, dtype):
    save_model(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    ids = torch.randint(264, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = model(ids).logits
        use_avx2_layers(model)
        after = model(ids).logits
    changed = {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)}
    assert changed == {Bfloat16Linear if dtype == torch.bfloat16 else nn.Linear}
    torch.testing.assert_close(before.softmax(-1), after.softmax(-1), rtol=0.1, atol=1e-3)


@pytest.mark.parametrize(
    ("capability", "there", "expected"),
    [
        ("AVX2", True, True),
        ("AVX512", True, False),
        ("DEFAULT", True, False),
        ("AVX2", False, False),
    ],
)
def test_it_helps_where_avx_512_lacks_and_numba_is_there(
    monkeypatch, caplog, capability, there, expected
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    if not there:
        monkeypatch.setitem(sys.modules, "numba", None)
    assert avx2.is_available.__wrapped__() is expected
    assert ("safedraft[cpu]" in caplog.text) is not there


def test_it_helps_in_torch_s_own_threads_only(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(avx2, "find_openmp", avx2.find_openmp.__wrapped__)
    assert not avx2.is_available.__wrapped__()


def test_where_it_does_not_help_a_model_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(avx2, "is_available", lambda: False)
    model = nn.Sequential(nn.Linear(4, 4).bfloat16())
    use_avx2_layers(model)
    assert type(model[0]) is nn.Linear
