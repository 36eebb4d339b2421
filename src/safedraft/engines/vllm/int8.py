"""The draft's weights in 8 bits in vLLM, on processors: a quantization registered with vLLM.

vLLM can run 8-bit layers of checkpoints that have them. Here they are made while the draft is
loaded, output layer included, and the same kernels run them: the inputs of a layer are rounded as
well, row by row. Unlike those of ``kernels.int8``, they are as fast for a few rows as for one.
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
from safedraft.kernels.int8 import quantize_int8

_PRIMITIVES = 32  # oneDNN caches code for so many numbers of rows, as in its own layers


def largest_weight() -> int:
    """The rounded value of a row's largest weight: 127, or less where sums would overflow.

    On x86 without VNNI, oneDNN adds two products of an input (up to 255, as it shifts them) and a
    weight in 16 bits, which saturate silently at 32767: a weight is at most 64 there.
    """
    able = torch.cpu.get_capabilities()
    overflows = able["architecture"] == "x86_64" and not (able["avx512_vnni"] or able["avx_vnni"])
    return 64 if overflows else 127


class _Int8:
    """Computes linear and output layers; vLLM loads them."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Round the loaded weights and give them to oneDNN, which stores them in its own layout."""
        weight = layer.weight.detach()
        rounded, scale = quantize_int8(weight, largest_weight())
        layer.int8_scale = scale[None].contiguous()  # oneDNN holds no reference to it
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
    """Keeps the loaded weights, since the embedding may share them."""


@register_quantization_config(INT8)
class Int8Config(QuantizationConfig):  # type: ignore[misc]
    """Every linear layer and the output layer in 8 bits."""

    def get_name(self) -> str:
        """The registered name."""
        return INT8

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """The types that a checkpoint can have."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """No accelerator is needed."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """There is no configuration file."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Int8Config:
        """There is nothing to configure."""
        return cls()

    def get_quant_method(self, layer: Any, prefix: str) -> Any:
        """The method that computes a layer; None for vLLM's own."""
        if isinstance(layer, LinearBase):
            return _Linear()
        return _Output() if isinstance(layer, ParallelLMHead) else None
