"""8-bit weights for a draft on processors, which halve the memory traffic of each drafted token.

A draft proposes one token per pass, and such a pass takes as long as reading the weights. As 8-bit
integers with one scale per row, weights have half the size of bfloat16; products are summed in
float32. Tokens are proposed and verified with the distribution of the quantized draft, so that SSD
stays exact, with a slightly different draft.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from safedraft.kernels import avx2

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_ROWS = 8
"""Maximum number of tokens for which torch's kernel for 8-bit weights is faster."""

MULTIPLE = 32
"""Required divisor of a layer's number of inputs; torch's kernel crashes with other rows."""


def quantize_int8(weight: Tensor, largest: int = 127) -> tuple[Tensor, Tensor]:
    """Quantize weights to ``round(W / scale)`` with one scale per row.

    Args:
        weight: W, ``[out, in]``, on a processor.
        largest: the quantized value of the largest weight of a row.

    Returns:
        The quantized weights, ``[out, in]`` in int8, and the scales, ``[out]`` in float32.
    """
    row_maximum = weight.abs().amax(dim=1, keepdim=True).float()
    scale = (row_maximum / largest).clamp(min=torch.finfo(torch.float32).tiny)
    # Some rows at a time, since float32 takes twice the memory.
    pieces = zip(torch.split(weight, 8192), torch.split(scale, 8192), strict=True)
    return torch.cat([(w.float() / s).round().to(torch.int8) for w, s in pieces]), scale[:, 0]


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights.

    Args:
        layer: the layer that it replaces, ``[out, in]``, on a processor; in is a multiple of
            ``MULTIPLE``.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight, scale = quantize_int8(layer.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale.to(layer.weight.dtype), requires_grad=False)
        self.bias = layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        rows = inputs.reshape(-1, self.in_features)
        if avx2.is_available():
            outputs = avx2.multiply(rows, self.weight).mul_(self.scale)
        elif len(rows) <= MAX_ROWS:
            outputs = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            outputs = nn.functional.linear(rows, self.weight.to(rows.dtype)) * self.scale
        if self.bias is not None:
            outputs += self.bias
        return outputs.to(inputs.dtype).reshape(*inputs.shape[:-1], self.out_features)


def use_int8_layers(model: PreTrainedModel) -> None:
    """Replace the linear layers of a model by ``Int8Linear``; other layers keep their weights.

    The experts of a mixture are not linear layers in Transformers but slices of one weight, which
    is kept.
    With the AVX2 kernels the other layers become float32, since converting their few weights in
    each pass takes longer than reading them.
    """
    names = [
        name
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and layer.in_features % MULTIPLE == 0
    ]
    for name in names:  # by name, so that each old layer is freed when it is replaced
        model.set_submodule(name, Int8Linear(cast("nn.Linear", model.get_submodule(name))))
    if avx2.is_available():
        model.float()
