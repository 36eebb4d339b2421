"""Over how many devices a model's heads can be split."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from safedraft.models.description import ModelDescription
from safedraft.models.devices import split_sizes


@pytest.mark.parametrize(
    ("heads", "shared", "inner", "sizes"),
    [
        (14, 2, 4864, [1, 2]),  # Qwen2.5-0.5B
        (16, 8, 3072, [1, 2, 4, 8, 16]),  # Qwen3-0.6B: 16 devices have each head twice
        (28, 4, 18944, [1, 2, 4]),  # Qwen2.5-7B
        (12, 3, 4096, [1]),
        (8, 8, 36, [1, 2, 4]),
    ],
)
def test_each_device_gets_whole_heads(
    heads: int, shared: int, inner: int, sizes: list[int]
) -> None:
    config = LlamaConfig(
        num_attention_heads=heads,
        num_key_value_heads=shared,
        intermediate_size=inner,
        hidden_size=heads * 8,
    )
    assert split_sizes(ModelDescription("a", config, None, None)) == sizes
