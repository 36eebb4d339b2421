"""Checks of a pair before it answers requests."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safedraft.core.config import SSDConfig
from safedraft.core.errors import SafeDraftError, UnguardedWarning
from safedraft.core.risk import RiskProbe
from safedraft.engines.base import LoadedPair
from safedraft.models.registry import PairSpec
from safedraft.rules import RULES
from safedraft.text.encode import require_system_prompt
from safedraft.text.messages import is_valid_unicode
from safedraft.text.template import require_variables, template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def require_system_prompts(loaded: LoadedPair) -> None:
    """Check that the chat template of each model can show its own system prompt.

    Raises:
        SafeDraftError: a template ignores or rejects system prompts.
    """
    for model in (loaded.target, loaded.draft):
        require_system_prompt(model.name, model.tokenizer, model.system)


def require_settable(
    variables: Mapping[str, Any], tokenizers: Sequence[PreTrainedTokenizerBase]
) -> None:
    """Check that a request can set these variables of the chat templates.

    A template may write a text into the prompt as it stands, where a control token would begin a
    turn that nobody allowed.

    Raises:
        SafeDraftError: a variable is read by no template, or is a text that is not valid Unicode or
            spells a control token.
    """
    require_variables(variables, [template_of(tokenizer) for tokenizer in tokenizers])
    added = {token.content for one in tokenizers for token in one.added_tokens_decoder.values()}
    for name, value in variables.items():
        text = value if isinstance(value, str) else ""
        if not is_valid_unicode(text):
            raise SafeDraftError(f"template: {name} is not valid Unicode: send it as UTF-8")
        if spelled := [token for token in added if len(token.strip()) > 1 and token in text]:
            token = max(spelled, key=len)
            raise SafeDraftError(f"template: {name} has the control token {token!r}: leave it out")


def require_rule(name: str) -> None:
    """Check that a rule exists.

    Raises:
        SafeDraftError: no rule has this name; the message lists all rules.
    """
    RULES.find(name)


def require_probe(probe: RiskProbe | None, given: SSDConfig | Mapping[str, Any] | None) -> None:
    """Check that the pair has a risk probe if a caller sets constants of the risk.

    Constants in the pair's entry need no probe, since its adapter can be left out or replaced.

    Raises:
        SafeDraftError: the pair has no probe.
    """
    names = given.model_fields_set if isinstance(given, SSDConfig) else set(given or ())
    own = names - SSDConfig.model_fields.keys()
    if own and probe is None:
        raise SafeDraftError(
            f"{', '.join(sorted(own))}: the risk of requests is not read here: the adapter has no "
            "probe (safedraft train-risk)"
        )


def warn_if_unguarded(spec: PairSpec, config: SSDConfig | None) -> None:
    """Warn if the draft has no adapter and nobody accepted that, or the constants turn it off.

    Args:
        spec: the pair.
        config: constants in place of the pair's own.

    Warns:
        UnguardedWarning: once for each reason and pair in a process.
    """
    for reason in filter(None, (spec.warning, (config or spec.config).weakness)):
        warnings.warn(reason, UnguardedWarning, stacklevel=4)


def warn_of_unread_risk(spec: PairSpec, probe: RiskProbe | None) -> tuple[str, ...]:
    """Warn if a pair's entry has constants of the risk, and its own adapter lacks the probe.

    Returns:
        The warning, if there is one.

    Warns:
        UnguardedWarning: replies are decoded by SSD alone.
    """
    reason = None if probe else spec.unread_risk
    if reason is None:
        return ()
    warnings.warn(reason, UnguardedWarning, stacklevel=4)
    return (reason,)
