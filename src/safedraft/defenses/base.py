"""What a defense is, and the little that those which rewrite, read or withhold text share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import TYPE_CHECKING, Protocol, TypeGuard

from safedraft.core.config import Constants, SamplingParams
from safedraft.core.errors import SafeDraftError
from safedraft.core.rule import Rule
from safedraft.rules.target_only import TargetOnly
from safedraft.text.messages import Message
from safedraft.text.refusals import REFUSAL
from safedraft.text.results import GenerationResult, Statistics

if TYPE_CHECKING:
    from safedraft.pair import Pair


class Defense(Protocol):
    """Anything that answers a conversation with a pair."""

    def __call__(
        self,
        pair: Pair,
        messages: Sequence[Message],
        sampling: SamplingParams,
        config: Constants,
    ) -> GenerationResult:
        """The whole reply; messages that end in an assistant turn are continued.

        Raises:
            SafeDraftError: nothing to answer, or no room for it in the context.
            BrokenModelError: a model gave NaN or infinite logits.
        """
        ...


@dataclass(frozen=True)
class RuleDefense:
    """The defense that lies in the rule alone by which positions are decided."""

    rule: Rule

    def __call__(
        self,
        pair: Pair,
        messages: Sequence[Message],
        sampling: SamplingParams,
        config: Constants,
    ) -> GenerationResult:
        """As ``Defense``."""
        return pair.generate(messages, sampling=sampling, config=config, rule=self.rule)


undefended = RuleDefense(TargetOnly())
"""The target alone: what the defenses that work on text answer with."""


class PromptDefense(Protocol):
    """A defense that asks the target alone, and works on the prompts and replies around it."""

    def __call__(
        self,
        pair: Pair,
        messages: Sequence[Message],
        sampling: SamplingParams,
        config: Constants,
        ask: Defense = undefended,
    ) -> GenerationResult:
        """As ``Defense``; whatever the target is asked, ``ask`` answers."""
        ...


def is_prompt_defense(defense: Defense) -> TypeGuard[PromptDefense]:
    """Whether a defense lets another function ask the target, so that replies can be drawn."""
    return "ask" in signature(defense).parameters


def last_user(messages: Sequence[Message]) -> int:
    """Where the last user message stands.

    Raises:
        SafeDraftError: there is none.
    """
    for index in reversed(range(len(messages))):
        if messages[index]["role"] == "user":
            return index
    raise SafeDraftError("the conversation has no user message to answer")


def rewrite_request(messages: Sequence[Message], text: str) -> list[Message]:
    """``messages`` with ``text`` in place of the last user message's."""
    at = last_user(messages)
    return [*messages[:at], {**messages[at], "content": text}, *messages[at + 1 :]]


def refuse(pair: Pair, withheld: GenerationResult) -> GenerationResult:
    """A fixed refusal in place of a reply; nothing decoded it, so it has no trace and no cost yet.

    Its ``tokens`` are those of the sentence, which is what the user is given.
    """
    tokenizer = pair.target.tokenizer
    length = len(tokenizer.encode(REFUSAL, add_special_tokens=False)) if tokenizer else 0
    asked = withheld.statistics
    statistics = Statistics(prompt_tokens=asked.prompt_tokens, tokens=length, seed=asked.seed)
    return GenerationResult(text=REFUSAL, finish_reason="stop", statistics=statistics)


def add_cost(reply: GenerationResult, *work: Statistics) -> GenerationResult:
    """``reply`` with what other ``work`` for it cost: passes and seconds, spent before it began.

    The tokens of that work are not added, as the user never sees them. So ``tokens_per_second`` and
    ``tokens_per_target_pass`` are those of the tokens delivered, over all that was spent.
    """
    total = reply.statistics
    for other in work:
        total = replace(
            total,
            target_passes=total.target_passes + other.target_passes,
            draft_passes=total.draft_passes + other.draft_passes,
            seconds=total.seconds + other.seconds,
            first_token_seconds=total.first_token_seconds + other.seconds,
            target_seconds=total.target_seconds + other.target_seconds,
            draft_seconds=total.draft_seconds + other.draft_seconds,
        )
    return replace(reply, statistics=total)
