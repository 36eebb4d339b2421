"""Sizes of panels of weights, which packing and kernels share."""

from __future__ import annotations

COLUMNS = 32
"""Outputs of a panel of 8-bit weights."""
INPUTS = 4
"""Inputs of an output that lie beside each other in a panel of 8-bit weights."""
GROUP = 32
"""Inputs of an output that share a scale in a panel of 4-bit weights."""
GROUP_BYTES = COLUMNS * (GROUP // 2 + 2)
"""Bytes of a group of a panel of 4-bit weights, with its scales."""
LANES = 16
"""Outputs of a panel of floats."""
ROWS = 8
"""Largest number of rows of one walk over a panel; their sums fill the registers."""


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below a number."""
    return -(-number // multiple) * multiple
