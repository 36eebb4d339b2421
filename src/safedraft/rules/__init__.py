"""Rules by which positions are decided, one short file each."""

from __future__ import annotations

from collections.abc import Callable

from safedraft.core.plugins import Registry
from safedraft.core.rule import Rule

RULES: Registry[Callable[[], Rule]] = Registry("safedraft.rules", "rule")
"""Factories of rules, by name; third parties add theirs by an entry point of this group."""


def find_rule(name: str) -> Rule:
    """The rule of that name.

    Raises:
        SafeDraftError: no rule has this name; the message lists all rules.
    """
    return RULES.find(name)()


def own_rule(*, reads_risk: bool) -> str:
    """The rule of a pair's requests that name none: SSD with the risk of the request, or SSD alone.

    Args:
        reads_risk: whether the pair's adapter has a risk probe.
    """
    return "risk" if reads_risk else "ssd"
