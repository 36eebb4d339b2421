"""Matrix products with 16-bit and 8-bit weights, on processors with AVX2 but without AVX-512.

torch computes such products with AVX-512 instructions. Without them, the time of a pass is nearly
proportional to the number of tokens in the block, so that verifying drafts gains nothing. Here
every weight is read once for several rows and converted to float32 in registers, in loops that
Numba compiles for the processor. Weights keep their type, and sums are float32.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from safedraft.kernels.openmp import find_openmp

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)


@cache
def is_available() -> bool:
    """Whether this processor needs these kernels and Numba is installed; warns once if not."""
    if torch.backends.cpu.get_cpu_capability() != "AVX2" or find_openmp() is None:
        return False
    try:
        import numba  # noqa: F401
    except ImportError as error:  # also raised by a Numba that is too old for this NumPy
        _log.warning(
            "no AVX-512 on this processor: pip install 'safedraft[cpu]' speeds up blocks (%s)",
            error,
        )
        return False
    return True


def multiply(rows: Tensor, weight: Tensor) -> Tensor:
    """Compute ``X W^T`` without a gradient.

    Args:
        rows: X, ``[N, in]``, of a float type, on a processor.
        weight: W, ``[out, in]``, in bfloat16 or int8, contiguous, on a processor.

    Returns:
        ``[N, out]`` in float32.

    Raises:
        ValueError: an argument has another type, device or shape, which would read invalid memory.
    """
    from safedraft.kernels import avx2_kernels

    if not _is_supported(weight, torch.bfloat16, torch.int8) or not rows.is_cpu:
        raise ValueError(f"{weight.dtype} weights on {weight.device}, rows on {rows.device}")
    if rows.shape[1] != weight.shape[1]:
        raise ValueError(f"rows of {rows.shape[1]} numbers for weights of {weight.shape[1]}")
    outputs = torch.empty(len(rows), len(weight))
    avx2_kernels.multiply(weight, rows.float().contiguous(), outputs)
    return outputs


def _is_supported(weight: Tensor, *dtypes: torch.dtype) -> bool:
    return weight.is_cpu and weight.is_contiguous() and weight.dtype in dtypes


class Bfloat16Linear(nn.Linear):
    """A linear layer in bfloat16, computed by ``multiply`` if no gradient is needed."""

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        if torch.is_grad_enabled() or not _is_supported(self.weight, torch.bfloat16):
            return super().forward(input)
        outputs = multiply(input.reshape(-1, input.shape[-1]), self.weight)
        if self.bias is not None:
            outputs += self.bias
        return outputs.to(input.dtype).reshape(*input.shape[:-1], self.out_features)


def use_avx2_layers(model: PreTrainedModel) -> None:
    """Make a model's bfloat16 layers use these kernels, if they are available."""
    layers = [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear and _is_supported(layer.weight, torch.bfloat16)
    ]
    if layers and is_available():
        from safedraft.kernels import avx2_kernels  # noqa: F401  (compiles the kernels before the first reply)

        for layer in layers:
            layer.__class__ = Bfloat16Linear
