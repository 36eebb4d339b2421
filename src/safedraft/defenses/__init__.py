"""The defenses that SSD is compared with, one file each.

A rule decides each position from the two models. A defense answers a conversation with a pair, and
may also rewrite prompts, read replies or withhold them. Every rule can be used as a defense.
"""

from __future__ import annotations

from safedraft.core.config import Constants
from safedraft.core.plugins import Registry, unknown_name
from safedraft.defenses.base import Defense, RuleDefense
from safedraft.rules import RULES, find_rule

DEFENSES: Registry[Defense] = Registry("safedraft.defenses", "defense")
"""Defenses that are more than a rule; third parties add theirs by an entry point."""


def list_defenses() -> list[str]:
    """List the names of all defenses, the rules included."""
    return list(dict.fromkeys([*DEFENSES.names(), *RULES.names()]))


def find_defense(name: str) -> Defense:
    """Find a defense by its name.

    Raises:
        SafeDraftError: the name is unknown; the message lists the known ones.
    """
    if name in DEFENSES.names():
        return DEFENSES.find(name)
    if name in RULES.names():
        return RuleDefense(find_rule(name))
    raise unknown_name("defense", name, list_defenses())


def list_constants(name: str) -> frozenset[str]:
    """List the names of a defense's constants; empty if the defense is not installed."""
    if name in DEFENSES.names() or name not in RULES.names():
        return frozenset()
    return frozenset(find_rule(name).config.model_fields)


def find_constants_class(name: str) -> type[Constants]:
    """Find the class of a defense's constants."""
    if name in DEFENSES.names():
        return Constants
    return find_rule(name).config
