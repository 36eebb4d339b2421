"""The model inside of what compiles, adapts or distributes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def unwrap(model: torch.nn.Module) -> PreTrainedModel:
    """Return the model of Transformers inside, with an adapter's layers in it if it has some.

    Args:
        model: a model, one from ``torch.compile``, a ``PeftModel``, or ``DataParallel`` of one.
    """
    inside: Any = model
    while True:
        if hasattr(inside, "_orig_mod"):
            inside = inside._orig_mod
        elif hasattr(inside, "peft_config") and hasattr(inside, "get_base_model"):
            inside = inside.get_base_model()
        elif type(inside).__name__ in ("DataParallel", "DistributedDataParallel"):
            inside = inside.module
        else:
            return cast("PreTrainedModel", inside)
