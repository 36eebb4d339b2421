"""The defenses that SSD is compared with, one file each.

A rule decides each position from the two models. A defense answers a conversation with a pair, and
may also rewrite prompts, read replies or withhold them. Every rule can be used as a defense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safedraft.core.config import Constants, NoConstants, SSDConfig
from safedraft.core.plugins import Registry, unknown_name
from safedraft.defenses.base import Defense, RuleDefense, constants_class
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
    installed = name in list_defenses()
    return frozenset(find_constants_class(name).model_fields) if installed else frozenset()


def find_constants_class(name: str) -> type[Constants]:
    """Find the class of a defense's constants; ``Constants`` itself for one that has none."""
    if name in DEFENSES.names():
        return constants_class(DEFENSES.find(name)) or Constants
    return find_rule(name).config


def make_constants(name: str, config: SSDConfig, given: Mapping[str, Any]) -> Constants:
    """Make the constants with which a defense is called.

    Args:
        name: the defense.
        config: the pair's constants. A rule takes those that it has, a defense with constants of
            its own none, and any other defense all of them.
        given: values by name; those that the defense does not have are left out.

    Raises:
        SafeDraftError: a value is missing or outside its range.
    """
    if name not in DEFENSES.names():
        return config.convert_to(find_rule(name).config, **given)
    kind = constants_class(DEFENSES.find(name))
    return config if kind is None else NoConstants().convert_to(kind, **given)
