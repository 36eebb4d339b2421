"""Attention for a few new tokens after a long context, on processors.

In grouped-query attention several query heads read one head of keys. Transformers repeats the keys
for each of them, or hands a kernel one query row at a time; both cost more than the attention
itself once the context is long. Stacking the queries of a group as rows of one head gives the same
sums without a copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "stacked_sdpa"
MOST_ROWS = 32
"""New tokens up to which rows are stacked: a block, not a prefill."""


def stack_queries(model: PreTrainedModel) -> None:
    """Let a model on a processor attend this way; any other model is left as it is."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.device.type != "cpu" or model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, stacked_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def stacked_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As Transformers' own ``sdpa``, for ``query`` ``[B, H, N, D]`` and ``key`` ``[B, G, L, D]``.

    Returns:
        ``[B, N, H, D]``.
    """
    batch, heads, length, _ = query.shape
    groups = key.shape[1]
    every_head_alike = length == 1 if attention_mask is None else attention_mask.shape[1] == 1
    plain = not any(options.get(name) for name in ("dropout", "softcap", "cache"))
    plain = plain and options.get("position_bias") is None and not module.training
    if heads == groups or length > MOST_ROWS or not every_head_alike or not plain:
        return _transformers_own(module, query, key, value, attention_mask, scaling, options)
    stacked = query.reshape(batch, groups, heads // groups * length, -1)
    mask = None if attention_mask is None else attention_mask.repeat(1, 1, heads // groups, 1)
    output = scaled_dot_product_attention(stacked, key, value, attn_mask=mask, scale=scaling)
    return output.reshape(batch, heads, length, -1).transpose(1, 2).contiguous(), None


def _transformers_own(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    options: dict[str, Any],
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    own: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **options
    )
    return own
