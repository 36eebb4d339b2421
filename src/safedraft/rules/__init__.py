"""Rules by which positions are decided, one short file each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from safedraft.core.config import Constants
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


def constants_for(kind: type[Constants], config: Constants, **own: Any) -> Constants:
    """Constants of a kind, with the values that ``config`` and then ``own`` have for their names.

    Raises:
        SafeDraftError: a value outside its range.
    """
    if type(config) is kind and not own:
        return config
    values = config.model_dump() | own
    return kind(**{name: value for name, value in values.items() if name in kind.model_fields})
