"""Weights in 8 bits, for a draft on processors: half of what each drafted token reads from memory.

A draft proposes one token a pass, and such a pass takes as long as reading the weights does. Kept
as 8-bit integers with one scale a row they are half the size of bfloat16; the products are summed
in float32 by torch's own kernel. What the draft proposes is still taken from, and verified by, the
distribution that it gives: replies are as exact as before, from a draft that is a little another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from safedraft.kernels import avx2

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_ROWS = 8
"""Tokens up to which torch's kernel for 8-bit weights is the faster one."""

MULTIPLE = 32
"""Of what a layer's inputs must be: torch's kernel runs past the end of other rows and crashes."""


def in_int8(weight: Tensor, most: int = 127) -> tuple[Tensor, Tensor]:
    """``round(W / scale)``, ``[out, in]`` in int8, and one scale a row, ``[out]`` in float32.

    Args:
        weight: W, ``[out, in]``, on a processor.
        most: what the largest weight of a row becomes.
    """
    largest = weight.abs().amax(dim=1, keepdim=True).float()
    scale = (largest / most).clamp(min=torch.finfo(torch.float32).tiny)
    # Some rows at a time, for float32 takes twice the room.
    pieces = zip(torch.split(weight, 8192), torch.split(scale, 8192), strict=True)
    return torch.cat([(w.float() / s).round().to(torch.int8) for w, s in pieces]), scale[:, 0]


class Int8Linear(nn.Module):
    """A linear layer with its weights in 8 bits.

    Args:
        layer: what it takes the place of, ``[out, in]``, on a processor; in is a ``MULTIPLE``.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight, scale = in_int8(layer.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale.to(layer.weight.dtype), requires_grad=False)
        self.bias = layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        rows = inputs.reshape(-1, self.in_features)
        if avx2.helps():
            outputs = avx2.product(rows, self.weight).mul_(self.scale)
        elif len(rows) <= MOST_ROWS:
            outputs = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            outputs = nn.functional.linear(rows, self.weight.to(rows.dtype)) * self.scale
        if self.bias is not None:
            outputs += self.bias
        return outputs.to(inputs.dtype).reshape(*inputs.shape[:-1], self.out_features)


def keep_in_int8(model: PreTrainedModel) -> None:
    """Replace the linear layers of a model; embeddings and norms stay as they are.

    Without AVX-512 they become float32: so few numbers take longer to convert than to read.
    """
    names = [
        name
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and layer.in_features % MULTIPLE == 0
    ]
    for name in names:  # by name, so that none is kept once it is replaced
        model.set_submodule(name, Int8Linear(cast("nn.Linear", model.get_submodule(name))))
    if avx2.helps():
        model.float()
