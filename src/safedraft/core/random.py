"""Uniform random numbers from a counter: the same in every engine, whatever else runs.

A number is a function of the request's seed, the position and what it is used for. So a request's
tokens depend on its seed alone: not on the length of a block, not on the batch around it. A draft
that is thrown away is drawn again with the same number; whether it is thrown away never depended
on that number.

The function is Philox-4x32 with ten rounds (Salmon et al., "Parallel random numbers: as easy as 1,
2, 3", SC 2011), which needs only 32-bit integers and can be computed on any device.
"""

from __future__ import annotations

from enum import IntEnum

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


class Use(IntEnum):
    """The purpose of a random number at its position."""

    PROPOSE = 0
    """The choice of the token that the draft proposes, or that the target chooses alone."""
    ACCEPT = 1
    """The decision whether the proposed token is accepted."""
    CORRECT = 2
    """The choice of the token that replaces a rejected token."""


def uniform(seed: int, position: int, use: Use, number: int = 0) -> float:
    """A number in [0, 1) with 53 random bits.

    Args:
        seed: seed of the request, below 2^64.
        position: position of the token in the reply, from 0.
        use: purpose of the number.
        number: which of several numbers for the same use, from 0, below 2^32.
    """
    counter = (position & _MASK, position >> 32, int(use), number)
    high, low, *_ = philox(counter, (seed & _MASK, seed >> 32 & _MASK))
    return float((high >> 5) << 26 | low >> 6) / float(1 << 53)


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox-4x32-10: four random 32-bit words from a counter of four and a key of two."""
    a, b, c, d = counter
    key_a, key_c = key
    for _ in range(_ROUNDS):
        from_a, from_c = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = (from_c >> 32) ^ b ^ key_a, from_c & _MASK
        c, d = (from_a >> 32) ^ d ^ key_c, from_a & _MASK
        key_a, key_c = (key_a + _WEYL[0]) & _MASK, (key_c + _WEYL[1]) & _MASK
    return a, b, c, d
