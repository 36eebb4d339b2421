"""Over how many devices vLLM can split a model's layers (tensor parallelism)."""

from __future__ import annotations

from safedraft.models.description import ModelDescription

SIZES = (1, 2, 4, 8, 16)
"""Numbers of devices that are looked at."""


def can_be_split(model: ModelDescription, devices: int) -> bool:
    """Whether each device gets whole attention heads and an equal part of the inner layers.

    Heads of keys and values are divided, or repeated where there are fewer of them than devices.
    """
    config = model.config.get_text_config()
    heads, shared = count_heads(model)
    inner = getattr(config, "intermediate_size", None) or 0
    split = shared % devices == 0 or devices % max(shared, 1) == 0
    return split and heads % devices == 0 and (not isinstance(inner, int) or inner % devices == 0)


def count_heads(model: ModelDescription) -> tuple[int, int]:
    """Number of attention heads, and of those of keys and values; 0 where there are none."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 0) or 0
    return heads, getattr(config, "num_key_value_heads", None) or heads


def split_sizes(model: ModelDescription) -> list[int]:
    """The ``SIZES`` that a model can be split over."""
    return [devices for devices in SIZES if can_be_split(model, devices)]
