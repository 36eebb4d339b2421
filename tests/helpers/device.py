"""A processor's tensors that stand for those of a device, and count what is read of them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

_READS = {
    *("cpu", "tolist", "item", "numpy", "__bool__", "__int__", "__float__", "__index__"),
    *("nonzero", "equal", "masked_select", "unique", "allclose", "__contains__"),
}


class OnDevice(Tensor):
    """A tensor whose results are on the device as well, until they are copied to the host."""

    reads: ClassVar[int] = 0
    """How often the host waited for the device."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count the functions that copy to the host, whose results are plain tensors."""
        name = func.__name__
        moves = name == "to" and any(isinstance(arg, str | torch.device) for arg in args)
        masks = name in ("__getitem__", "__setitem__") and _has_mask(args[1])
        result = super().__torch_function__(func, types, args, kwargs or {})
        if name in _READS or moves or masks:
            OnDevice.reads += 1
            return result.as_subclass(Tensor) if isinstance(result, Tensor) else result
        return result


def _has_mask(key: Any) -> bool:
    """Whether the size of what a key selects depends on numbers on the device."""
    keys = key if isinstance(key, tuple) else (key,)
    return any(isinstance(one, OnDevice) and one.dtype == torch.bool for one in keys)
