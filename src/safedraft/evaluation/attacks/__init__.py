"""Attacks, one file each: from a request to the conversation that a defense has to answer.

Each is registered as an entry point in the group ``safedraft.attacks``; a distribution that
registers one under another name adds it, and a suite of that name, to ``safedraft eval``.
"""

from __future__ import annotations

from safedraft.core.plugins import Registry
from safedraft.evaluation.attacks.base import Attack, SkipSampleError

ATTACKS: Registry[Attack] = Registry("safedraft.attacks", "attack")
"""Every attack by name; loaded when it is found."""

__all__ = ["ATTACKS", "Attack", "SkipSampleError"]
