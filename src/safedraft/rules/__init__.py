"""Rules by which positions are decided, one short file each."""

from __future__ import annotations

from collections.abc import Callable

from safedraft.core.config import Constants
from safedraft.core.plugins import Registry
from safedraft.core.rule import Rule

RULES: Registry[Callable[[], Rule]] = Registry("safedraft.rules", "rule")
"""What makes each rule, by name; third parties add theirs by an entry point of this group."""


def find_rule(name: str) -> Rule:
    """The rule of that name.

    Raises:
        SafeDraftError: there is none; lists those there are.
    """
    return RULES.find(name)()


def constants_for(rule: Rule, config: Constants) -> Constants:
    """A rule's constants, with the values that ``config`` has for those of the same name."""
    if isinstance(config, rule.config):
        return config
    values = config.model_dump().items()
    return rule.config(
        **{name: value for name, value in values if name in rule.config.model_fields}
    )
