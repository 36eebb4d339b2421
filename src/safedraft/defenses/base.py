"""The protocols of defenses, and functions that several defenses share."""

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
    """A method that answers a conversation with a pair.

    One that scores a given text with a model has an attribute ``needs_sessions`` that is true;
    engines without sessions then refuse it before anything is answered. One with constants of its
    own has an attribute ``config``, the class of them; it is called with an object of that class.
    """

    def __call__(
        self,
        pair: Pair,
        messages: Sequence[Message],
        sampling: SamplingParams,
        config: Constants,
    ) -> GenerationResult:
        """Return the whole reply; messages that end with an assistant turn are continued.

        Raises:
            SafeDraftError: there is nothing to answer, or the context has no room for a reply.
            BrokenModelError: a model gave NaN or infinite logits.
        """
        ...


@dataclass(frozen=True)
class RuleDefense:
    """A defense that consists of a rule alone."""

    rule: Rule

    def __call__(
        self,
        pair: Pair,
        messages: Sequence[Message],
        sampling: SamplingParams,
        config: Constants,
    ) -> GenerationResult:
        """Return the pair's reply under the rule; see ``Defense``."""
        own = config.convert_to(self.rule.config)
        return pair.generate(messages, sampling=sampling, config=own, rule=self.rule)


answer_undefended = RuleDefense(TargetOnly())
"""The target alone, with which defenses that work on text answer."""


class PromptDefense(Protocol):
    """A defense that changes the prompts and replies of the target alone."""

    def __call__(
        self,
        pair: Pair,
        messages: Sequence[Message],
        sampling: SamplingParams,
        config: Constants,
        ask: Defense = answer_undefended,
    ) -> GenerationResult:
        """Return the reply; see ``Defense``. ``ask`` answers each prompt to the target."""
        ...


def is_prompt_defense(defense: Defense) -> TypeGuard[PromptDefense]:
    """Whether a defense has the parameter ``ask``, so that its replies can be batched."""
    return "ask" in signature(defense).parameters


def needs_sessions(defense: Defense) -> bool:
    """Whether a defense scores a given text with a model, which not every engine supports."""
    return bool(getattr(defense, "needs_sessions", False))


def constants_class(defense: Defense) -> type[Constants] | None:
    """The class of a defense's own constants; None if it has none."""
    return getattr(defense, "config", None)


def find_last_user(messages: Sequence[Message]) -> int:
    """Find the index of the last user message.

    Raises:
        SafeDraftError: there is no user message.
    """
    for index in reversed(range(len(messages))):
        if messages[index]["role"] == "user":
            return index
    raise SafeDraftError("the conversation has no user message to answer")


def rewrite_request(messages: Sequence[Message], text: str) -> list[Message]:
    """Replace the text of the last user message by ``text``."""
    at = find_last_user(messages)
    return [*messages[:at], {**messages[at], "content": text}, *messages[at + 1 :]]


def require_direct_answers(
    pair: Pair, defense: str, does: str = "asks the target for a few words"
) -> None:
    """Check that the target does not begin its replies with reasoning.

    Raises:
        SafeDraftError: replies begin with reasoning.
    """
    if pair.thinks:
        raise SafeDraftError(
            f"{defense} {does}, and {pair.target.name} thinks first: "
            "switch that off (template = { enable_thinking = false })"
        )


def make_refusal(pair: Pair, withheld: GenerationResult) -> GenerationResult:
    """Make a fixed refusal in place of a reply; it has no trace and no cost.

    ``tokens`` is the length of the refusal, which is what the user gets.
    """
    tokenizer = pair.target.tokenizer
    length = len(tokenizer.encode(REFUSAL, add_special_tokens=False)) if tokenizer else 0
    original = withheld.statistics
    statistics = Statistics(prompt_tokens=original.prompt_tokens, tokens=length, seed=original.seed)
    return GenerationResult(text=REFUSAL, finish_reason="stop", statistics=statistics)


def refuse(pair: Pair, messages: Sequence[Message], sampling: SamplingParams) -> GenerationResult:
    """Make a fixed refusal of a request for which nothing has been decoded.

    Raises:
        SafeDraftError: the request could not have been answered; see ``Defense``.
    """
    prompts = pair.prompts(messages)
    seed = pair.fit(prompts, sampling).seed
    statistics = Statistics(prompt_tokens=prompts.longest, seed=None if sampling.greedy else seed)
    return make_refusal(pair, GenerationResult(statistics=statistics))


def add_cost(reply: GenerationResult, *work: Statistics) -> GenerationResult:
    """Add the passes and seconds of other ``work``, done before the reply began, to its statistics.

    The tokens of that work are not added, since the user never sees them: ``tokens_per_second`` and
    ``tokens_per_target_pass`` count the delivered tokens over the total cost.
    """
    total = reply.statistics
    for other in work:
        total = replace(
            total,
            target_passes=total.target_passes + other.target_passes,
            target_rows=total.target_rows + other.target_rows,
            draft_passes=total.draft_passes + other.draft_passes,
            seconds=total.seconds + other.seconds,
            first_token_seconds=total.first_token_seconds + other.seconds,
            target_seconds=total.target_seconds + other.target_seconds,
            draft_seconds=total.draft_seconds + other.draft_seconds,
        )
    return replace(reply, statistics=total)
