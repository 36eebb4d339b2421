"""What SSD is compared with, one file each.

A rule decides each position from the two models; a defense answers a conversation with a pair, and
may rewrite, read or withhold text around a rule. Every rule is a defense of its own.
"""

from __future__ import annotations

from safedraft.core.config import Constants
from safedraft.core.errors import SafeDraftError
from safedraft.core.plugins import Registry
from safedraft.defenses.base import Defense, RuleDefense
from safedraft.defenses.perplexity_filter import PerplexityFilter
from safedraft.rules import RULES, find_rule

DEFENSES: Registry[Defense] = Registry("safedraft.defenses", "defense")
"""Defenses that are more than a rule; third parties add theirs by an entry point."""


def defense_names() -> list[str]:
    """Every way to answer a conversation: the rules, and the defenses that are more than one."""
    return list(dict.fromkeys([*DEFENSES.names(), *RULES.names()]))


def find_defense(name: str) -> Defense:
    """The defense of that name.

    Raises:
        SafeDraftError: there is none; lists those there are.
    """
    if name in DEFENSES.names():
        return DEFENSES.find(name)
    if name in RULES.names():
        return RuleDefense(find_rule(name))
    raise SafeDraftError(f"no defense is called {name!r}; known are {', '.join(defense_names())}")


def constants_of(name: str) -> frozenset[str]:
    """Names of the constants that a defense uses; none of one that is not installed."""
    if name in DEFENSES.names() or name not in RULES.names():
        return frozenset()
    return frozenset(find_rule(name).config.model_fields)


def needs_sessions(name: str) -> bool:
    """Whether a defense asks a model about a text, which not every engine can do."""
    return isinstance(find_defense(name), PerplexityFilter)


def constants_class(name: str) -> type[Constants]:
    """The class of the constants that a defense uses."""
    if name in DEFENSES.names():
        return Constants
    return find_rule(name).config
