"""The draft's weights in 8 bits in vLLM, on processors: a quantization that vLLM knows by name.

vLLM can run 8-bit layers of checkpoints that have them. Here they are made while the draft is
loaded, output layer included, and run by the same kernels: the inputs of a layer are rounded as
well, row by row. Unlike those of ``engines.int8`` they are as fast for a few rows as for one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm import _custom_ops as ops
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
)

from safedraft.engines.vllm.options import INT8
from safedraft.kernels.int8 import in_int8

_PRIMITIVES = 32  # oneDNN keeps code for that many numbers of rows, as in its own layers


def most() -> int:
    """What the largest weight of a row becomes: 127, or what cannot overflow.

    On x86 without VNNI oneDNN adds two products of an input (up to 255 as it shifts them) and a
    weight in 16 bits, which end at 32767 without a word: a weight is 64 at the most there.
    """
    able = torch.cpu.get_capabilities()
    overflows = able["architecture"] == "x86_64" and not (able["avx512_vnni"] or able["avx_vnni"])
    return 64 if overflows else 127


class _Int8:
    """How linear and output layers are computed alike; how they are loaded is vLLM's own."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Round what was loaded and hand it to oneDNN, which keeps it in an order of its own."""
        weight = layer.weight.detach()
        rounded, scale = in_int8(weight, most())
        layer.int8_scale = scale[None].contiguous()  # oneDNN reads it, and does not keep it alive
        layer.int8 = ops.create_onednn_scaled_mm(
            rounded.t(), layer.int8_scale, weight.dtype, True, False, _PRIMITIVES
        )

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        rows = x.reshape(-1, x.shape[-1])
        rounded, scale, _ = ops.onednn_scaled_int8_quant(rows, None, None, True)
        outputs = rows.new_empty(rows.shape[0], layer.int8.n)
        ops.onednn_scaled_mm(layer.int8, rounded, outputs, scale, None, None, bias)
        return outputs.reshape(*x.shape[:-1], layer.int8.n)


class _Linear(_Int8, UnquantizedLinearMethod):  # type: ignore[misc]
    def process_weights_after_loading(self, layer: Any) -> None:
        super().process_weights_after_loading(layer)
        layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)


class _Output(_Int8, UnquantizedEmbeddingMethod):  # type: ignore[misc]
    """Keeps its weights as they were loaded, for they may be the embedding's."""


@register_quantization_config(INT8)
class Int8Config(QuantizationConfig):  # type: ignore[misc]
    """Every linear layer and the output layer in 8 bits."""

    def get_name(self) -> str:
        """As it was registered."""
        return INT8

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """What a checkpoint may be in."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Of no accelerator."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """There is nothing to configure."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Int8Config:
        """Likewise."""
        return cls()

    def get_quant_method(self, layer: Any, prefix: str) -> Any:
        """How a layer is computed; None where vLLM's own way stays."""
        if isinstance(layer, LinearBase):
            return _Linear()
        return _Output() if isinstance(layer, ParallelLMHead) else None
