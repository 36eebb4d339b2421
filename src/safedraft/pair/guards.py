"""Checks of a pair before it answers requests."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from safedraft.core.config import SSDConfig
from safedraft.core.errors import SafeDraftError, UnguardedWarning
from safedraft.engines.base import LoadedPair
from safedraft.models.registry import PairSpec
from safedraft.rules import RULES
from safedraft.text.encode import require_system_prompt


def require_system_prompts(loaded: LoadedPair) -> None:
    """Check that the chat template of each model can show its own system prompt.

    Raises:
        SafeDraftError: a template ignores or rejects system prompts.
    """
    for model in (loaded.target, loaded.draft):
        require_system_prompt(model.name, model.tokenizer, model.system)


def require_rule(name: str) -> None:
    """Check that a rule exists.

    Raises:
        SafeDraftError: no rule has this name; the message lists all rules.
    """
    RULES.find(name)


def require_probe(loaded: LoadedPair, given: SSDConfig | Mapping[str, Any] | None) -> None:
    """Check that the pair has a risk probe if a caller sets constants of the risk.

    Constants in the pair's entry need no probe, since its adapter can be left out or replaced.

    Raises:
        SafeDraftError: the pair has no probe.
    """
    names = given.model_fields_set if isinstance(given, SSDConfig) else set(given or ())
    own = names - SSDConfig.model_fields.keys()
    if own and loaded.probe is None:
        raise SafeDraftError(
            f"{', '.join(sorted(own))}: the risk of requests is not read here: the adapter has no "
            "probe (safedraft train-risk)"
        )


def warn_if_unguarded(spec: PairSpec) -> None:
    """Warn if the draft has no adapter and nobody accepted that.

    Warns:
        UnguardedWarning: once for each pair in a process.
    """
    if spec.warning:
        warnings.warn(spec.warning, UnguardedWarning, stacklevel=4)
