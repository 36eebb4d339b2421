"""Products of rows with panels, against exact integers, with all instructions that Numba has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from safedraft.kernels.instructions import Instructions, find_instructions  # noqa: E402

if find_instructions() is None:
    pytest.skip("no kernels for this processor", allow_module_level=True)

from safedraft.kernels import panels  # noqa: E402
from safedraft.kernels.layout import COLUMNS, GROUP, INPUTS, LANES, ROWS  # noqa: E402

FEATURES = {
    Instructions.AVX2: "+avx2,+avx,+fma,+sse4.2,+ssse3",
    Instructions.AVX_VNNI: "+avx512vnni,+avx512vl,+avx512f,+avx2,+avx,+fma",
}

CHECK = """
import safedraft.kernels.instructions as instructions
if {forced!r}:
    instructions.find_instructions = lambda: instructions.Instructions[{forced!r}]
import safedraft.kernels.panels as panels
import sys; sys.path.insert(0, {here!r})
import test_panels
test_panels.check_integers(panels)
test_panels.check_groups(panels)
test_panels.check_floats(panels)
print(instructions.find_instructions().name)
"""


def check_integers(panels):
    add = panels.add_products

    @numba.njit
    def call(rows, panel, inputs, stride, steps, outputs):
        add(rows, panel, inputs, stride, steps, outputs)

    random = np.random.default_rng(0)
    for inputs in (4, 36, 1000):
        for rows in range(1, ROWS + 1):
            weights = random.integers(0, 256, (inputs // INPUTS, COLUMNS, INPUTS), dtype=np.uint8)
            weights[0] = 255  # sums of two products must not be cut off
            numbers = random.integers(-127, 128, (rows, inputs), dtype=np.int8)
            numbers[:, :INPUTS] = 127
            sums = np.zeros((rows, COLUMNS), np.int32)
            addresses = weights.ctypes.data, numbers.ctypes.data
            call(rows, *addresses, inputs, inputs // INPUTS, sums.ctypes.data)
            grouped = numbers.reshape(rows, -1, INPUTS).astype(np.int64)
            exact = np.einsum("kci,nki->nc", weights.astype(np.int64), grouped)
            assert (sums == exact).all()


def check_groups(panels):
    import torch

    from safedraft.engines.cpu.pack import pack_linear, quantize_groups

    add = panels.add_grouped_products

    @numba.njit
    def call(rows, panel, inputs, stride, groups, sums, sums_stride, outputs):
        add(rows, panel, inputs, stride, groups, sums, sums_stride, outputs)

    torch.manual_seed(0)
    weight = torch.randn(COLUMNS, 96)
    weight[3, 32:64] = 0  # a group without a scale
    packed = pack_linear(weight, bits=4).weights
    numbers, scales = quantize_groups(weight)
    whole = (numbers.float() - 8).view(COLUMNS, 3, GROUP)
    restored = (whole * scales[..., None].float()).flatten(1)
    assert (restored - weight).norm() < 0.1 * weight.norm()
    rows = torch.randint(-127, 128, (ROWS, 96), dtype=torch.int8)
    sums = rows.view(ROWS, 3, GROUP).sum(-1, dtype=torch.int32)
    alone = torch.zeros(ROWS, COLUMNS)
    for count in (1, ROWS, 5):
        outputs = torch.zeros(count, COLUMNS)
        addresses = packed.data_ptr(), rows.data_ptr(), 96, 3, sums.data_ptr(), 12
        call(count, *addresses, outputs.data_ptr())
        torch.testing.assert_close(
            outputs, (rows.float() @ restored.T)[:count], rtol=1e-4, atol=1e-2
        )
        alone[0] = outputs[0] if count == 1 else alone[0]
        assert torch.equal(outputs[0], alone[0])  # to the last bit


def check_floats(panels):
    add = panels.add_float_products

    @numba.njit
    def call(rows, panel, inputs, stride, steps, outputs, out_stride):
        add(rows, panel, inputs, stride, steps, outputs, out_stride)

    random = np.random.default_rng(0)
    panel = random.standard_normal((50, LANES)).astype(np.float32)
    numbers = random.standard_normal((ROWS, 50)).astype(np.float32)
    alone = np.zeros((ROWS, LANES), np.float32)
    for row in range(ROWS):
        addresses = panel.ctypes.data, numbers[row].ctypes.data, 200, 50
        call(1, *addresses, alone[row].ctypes.data, 4 * LANES)
    np.testing.assert_allclose(alone, numbers @ panel, rtol=1e-4, atol=1e-5)
    for rows in range(2, ROWS + 1):
        together = np.zeros((rows, LANES), np.float32)
        addresses = panel.ctypes.data, numbers.ctypes.data, 200, 50
        call(rows, *addresses, together.ctypes.data, 4 * LANES)
        assert (together == alone[:rows]).all()  # to the last bit


def test_integers():
    check_integers(panels)


def test_groups():
    check_groups(panels)


def test_floats_are_the_same_alone_and_together():
    check_floats(panels)


@pytest.mark.slow
@pytest.mark.parametrize("instructions", FEATURES, ids=str)
def test_other_instructions(instructions, tmp_path):
    if find_instructions() is not Instructions.AVX512_VNNI:
        pytest.skip("this processor runs one kind")
    forced = instructions.name if instructions is Instructions.AVX_VNNI else ""
    code = CHECK.format(forced=forced, here=str(Path(__file__).parent))
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": FEATURES[instructions],
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == instructions.name


@pytest.mark.slow  # a process of its own
def test_without_known_instructions_there_are_none():
    code = "from safedraft.engines.cpu.compiled import why_not_available as w; print(w())"
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "needs a processor with AVX2", done.stderr
