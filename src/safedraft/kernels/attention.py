"""Attention for a few new tokens after a long context, on processors.

In grouped-query attention several query heads read one head of keys. Transformers repeats the keys
for each of them, or passes a kernel one query row at a time; with a long context both cost more
than the attention itself. Stacking the queries of a group as rows of one head gives the same
sums without a copy.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "stacked_sdpa"
MAX_ROWS = 32
"""Maximum number of new tokens for which rows are stacked: a block, not a prefill."""


def use_stacked_attention(model: PreTrainedModel) -> None:
    """Make a model on a processor use ``attend_stacked``; other models are not changed.

    Some models ask for ``sdpa`` by name, sparse attention among them, which would attend to every
    token under another name: these are not changed either.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.device.type != "cpu" or model.config._attn_implementation != "sdpa":
        return
    if any(map(_asks_for_sdpa, {type(module) for module in model.modules()})):
        return
    AttentionInterface.register(NAME, attend_stacked)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def _asks_for_sdpa(kind: type[torch.nn.Module]) -> bool:
    """Whether a method of a layer's class in Transformers compares a name with ``sdpa``."""
    if not kind.__module__.startswith("transformers.models."):
        return False
    methods = (inspect.unwrap(method) for method in vars(kind).values() if callable(method))
    codes = (getattr(method, "__code__", None) for method in methods)
    return any(
        code and "_attn_implementation" in code.co_names and _names_sdpa(code.co_consts)
        for code in codes
    )


def _names_sdpa(constants: tuple[Any, ...]) -> bool:
    return any(
        value == "sdpa" or (isinstance(value, tuple) and "sdpa" in value) for value in constants
    )


def attend_stacked(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute the same as Transformers' ``sdpa``.

    Args:
        module: the attention layer.
        query: ``[B, H, N, D]``.
        key: ``[B, G, L, D]``.
        value: ``[B, G, L, D]``.
        attention_mask: added to the scores, or None.
        scaling: factor of the scores; 1 / sqrt(D) if None.
        options: further arguments of ``sdpa``.

    Returns:
        ``[B, N, H, D]``.
    """
    batch, heads, length, _ = query.shape
    groups = key.shape[1]
    same_mask_for_all_heads = (
        length == 1 if attention_mask is None else attention_mask.shape[1] == 1
    )
    plain = not any(options.get(name) for name in ("dropout", "softcap", "cache"))
    plain = plain and options.get("position_bias") is None and not module.training
    if heads == groups or length > MAX_ROWS or not same_mask_for_all_heads or not plain:
        return _attend_with_sdpa(module, query, key, value, attention_mask, scaling, options)
    stacked = query.reshape(batch, groups, heads // groups * length, -1)
    mask = None if attention_mask is None else attention_mask.repeat(1, 1, heads // groups, 1)
    output = scaled_dot_product_attention(stacked, key, value, attn_mask=mask, scale=scaling)
    return output.reshape(batch, heads, length, -1).transpose(1, 2).contiguous(), None


def _attend_with_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    options: dict[str, Any],
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    output: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **options
    )
    return output
