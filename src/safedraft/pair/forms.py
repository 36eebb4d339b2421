"""Forms of replies: which pairs can keep a reply to one."""

from __future__ import annotations

from safedraft.core.errors import SafeDraftError
from safedraft.engines.base import Capability, LoadedPair
from safedraft.text.grammar import Grammars

_NAME = "structured_outputs"


def require_whole_reply(pair: LoadedPair, thinks: bool, turn_begun: bool | None) -> None:
    """Refuse a form where a reply cannot be kept to it as a whole.

    Args:
        pair: decodes the reply.
        thinks: whether its replies begin with reasoning.
        turn_begun: whether the reply has begun already.

    Raises:
        SafeDraftError: the engine knows no grammars, or the reply begins with something else.
    """
    pair.engine.capabilities.require(Capability.GRAMMARS, _NAME)
    if turn_begun:
        raise SafeDraftError(
            f"{_NAME}: the reply has begun already, and a form is that of a whole reply: leave out "
            "the prefill, or ask for no form"
        )
    if thinks:
        raise SafeDraftError(
            f"{_NAME}: replies begin with reasoning here, which the form would forbid: switch "
            "thinking off (template={'enable_thinking': False})"
        )


def make_grammars(pair: LoadedPair) -> Grammars:
    """Make the compiler of the forms of a pair's requests.

    Raises:
        SafeDraftError: the target has no tokenizer, or llguidance is missing or cannot read it.
    """
    if pair.target.tokenizer is None:
        raise SafeDraftError(f"{_NAME} needs a tokenizer, and {pair.target.name} has none")
    return Grammars(pair.target.tokenizer, pair.end_tokens, pair.vocabulary)
