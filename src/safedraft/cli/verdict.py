"""The outcome of a reply in the words of the playground: refused or answered, and its scheme."""

from __future__ import annotations

from collections.abc import Sequence

from safedraft.prompts.phrases import Verdict, classify
from safedraft.text.messages import Message
from safedraft.text.results import GenerationResult, Token

_VERDICTS: dict[Verdict, str] = {
    "refused": "Refused",
    "complied": "Answered",
    "neither": "Neither answered nor refused",
}
_CHANGES = 2
"""Number of changes of the scheme that are named; the others are counted."""


def judge_reply(reply: GenerationResult, messages: Sequence[Message]) -> Verdict:
    """Classify a reply by the lists of phrases, knowing the messages that it answers."""
    return classify(reply.text, "\n".join(message["content"] for message in messages))


def describe_verdict(reply: GenerationResult, messages: Sequence[Message]) -> str:
    """Describe how a reply ended, as ``Refused · union from token 8``."""
    verdict = "Stopped"
    if reply.finish_reason != "interrupted":
        verdict = _VERDICTS[judge_reply(reply, messages)]
    return " · ".join(part for part in (verdict, describe_schemes(reply.trace)) if part)


def describe_schemes(trace: Sequence[Token]) -> str:
    """Name the schemes that the tokens were decided in; empty for the target alone."""
    changes, before = [], None
    for at, token in enumerate(trace, 1):
        if token.scheme not in (None, before):  # none while the draft pauses
            changes.append(f"{token.scheme} from token {at}")
            before = token.scheme
    if len(changes) < 2:
        return "".join(f"{change.split()[0]} throughout" for change in changes)
    more = len(changes) - 1 - _CHANGES
    named = changes[1 : 1 + _CHANGES]
    return ", ".join(named + [f"{more} more {'change' if more == 1 else 'changes'}"] * (more > 0))
