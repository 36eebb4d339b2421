"""Products with weights of 16 and 8 bits, on processors that have AVX2 and no more.

torch computes such products with instructions that came with AVX-512. Without them a pass over a
block takes nearly as many times one token's as the block has tokens, and to verify drafts gains
nothing. Here every weight is read once for several rows and widened to float32 as it is multiplied,
by loops that Numba compiles for the processor at hand. Weights stay as they are, and sums are
float32's.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from safedraft.kernels.openmp import openmp

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)


@cache
def helps() -> bool:
    """Whether this is such a processor and Numba is there; warns once where it lacks."""
    if torch.backends.cpu.get_cpu_capability() != "AVX2" or openmp() is None:
        return False
    try:
        import numba  # noqa: F401
    except ImportError as error:  # also of one that is too old for this NumPy
        _log.warning(
            "no AVX-512 here: pip install 'safedraft[avx2]' makes blocks much faster (%s)", error
        )
        return False
    return True


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """``X W^T``, without a gradient.

    Args:
        rows: X, ``[N, in]``, of a float type, on a processor.
        weight: W, ``[out, in]``, in bfloat16 or int8, contiguous, on a processor.

    Returns:
        ``[N, out]`` in float32.

    Raises:
        ValueError: they are anything else, which would be read past its end.
    """
    from safedraft.kernels.avx2_kernels import multiply

    if not _readable(weight, torch.bfloat16, torch.int8) or not rows.is_cpu:
        raise ValueError(f"{weight.dtype} weights on {weight.device}, rows on {rows.device}")
    if rows.shape[1] != weight.shape[1]:
        raise ValueError(f"rows of {rows.shape[1]} numbers for weights of {weight.shape[1]}")
    outputs = torch.empty(len(rows), len(weight))
    multiply(weight, rows.float().contiguous(), outputs)
    return outputs


def _readable(weight: Tensor, *dtypes: torch.dtype) -> bool:
    return weight.is_cpu and weight.is_contiguous() and weight.dtype in dtypes


class Bfloat16Linear(nn.Linear):
    """A linear layer in bfloat16, computed by ``product`` wherever no gradient is asked for."""

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        if torch.is_grad_enabled() or not _readable(self.weight, torch.bfloat16):
            return super().forward(input)
        outputs = product(input.reshape(-1, input.shape[-1]), self.weight)
        if self.bias is not None:
            outputs += self.bias
        return outputs.to(input.dtype).reshape(*input.shape[:-1], self.out_features)


def widen_as_multiplied(model: PreTrainedModel) -> None:
    """Let a model's bfloat16 layers compute this way where it helps; elsewhere nothing changes."""
    layers = [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear and _readable(layer.weight, torch.bfloat16)
    ]
    if layers and helps():
        from safedraft.kernels import avx2_kernels  # noqa: F401  (compiled now, not in a reply)

        for layer in layers:
            layer.__class__ = Bfloat16Linear
