"""Training data from the target: beginnings of harmful answers, and its answers to the rest.

Harmful and harmless conversations are treated alike: they have the same surroundings and the same
openings of the reply, which the target continues. Only the request tells whether it is to be
refused.

The beginnings may be harmful: they are kept only in memory and in the cache of drawn replies.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from safedraft.core.errors import SafeDraftError
from safedraft.prompts.drawn import DrawnReply
from safedraft.prompts.phrases import is_refusal
from safedraft.text.messages import Message
from safedraft.training.conversations import PLAIN, RatedConversation, build_conversations
from safedraft.training.requests import (
    TrainingRequest,
    TrainingRequests,
    fill_opening,
    read_generic_beginnings,
    read_openings,
)

if TYPE_CHECKING:
    from safedraft.models.progress import ReportProgress
    from safedraft.training.config import TrainingConfig

_BEGINNING_TOKENS = 48  # drawn after an opening; more tokens add little variety

_CUT_SHARE = 0.5  # of the openings in front of answers, which end at any word of theirs

DrawReplies = Callable[..., list[DrawnReply]]
"""Like ``draw_target_replies`` without the pair."""


@dataclass(frozen=True)
class Begun:
    """A conversation, and the beginning of the reply that SafeDraft wrote."""

    conversation: RatedConversation
    opening: str
    """Empty if the reply has not begun."""

    @property
    def messages(self) -> list[Message]:
        """The conversation with the begun reply."""
        begun: list[Message] = [{"role": "assistant", "content": self.opening}]
        return [*self.conversation.messages, *(begun if self.opening else [])]


@dataclass(frozen=True)
class TargetReply:
    """The target's text after the opening of a reply."""

    begun: Begun
    text: str
    """Empty if the target was not asked, or refused to continue."""
    ended: bool
    """Whether the target ended it; otherwise it was cut off."""

    @property
    def request(self) -> TrainingRequest:
        """The request of the conversation."""
        return self.begun.conversation.request

    @property
    def messages(self) -> Sequence[Message]:
        """The conversation without the reply."""
        return self.begun.conversation.messages


@dataclass(frozen=True)
class TrainingData:
    """Conversations and the target's words, from which examples are made."""

    harmful: list[TargetReply]
    """Each has an opening."""
    answered: list[TargetReply]
    """Harmless ones, each with an answer, some with an opening."""
    declined: list[TrainingRequest]
    """Ordinary prompts and look-alikes that the target refuses as they stand."""

    @property
    def bare_openings(self) -> int:
        """Number of beginnings that are an opening only: the target was not asked, or refused."""
        return sum(not reply.text for reply in self.harmful)


def begin_replies(
    requests: Iterable[TrainingRequest], config: TrainingConfig, direct_share: float
) -> list[Begun]:
    """Build the conversations of requests, and begin the replies to all but ``direct_share``."""
    rng = random.Random(f"openings {config.seed}")
    begun = []
    for conversation in build_conversations(list(requests), config.dressed, config.seed):
        opening = _choose_opening(conversation.request, rng, config)
        begun.append(Begun(conversation, "" if rng.random() < direct_share else opening))
    return begun


def cut_openings(begun: Iterable[Begun], config: TrainingConfig) -> list[Begun]:
    """End some of the openings at any word of theirs.

    A refusal is learned at every token of an opening. So the target's own words are, on the other
    side, learned at as many places.
    """
    rng = random.Random(f"cuts {config.seed}")
    cut = []
    for one in begun:
        words = re.findall(r"\S+\s*", one.opening)
        count = rng.randint(1, len(words)) if words and rng.random() < _CUT_SHARE else len(words)
        cut.append(Begun(one.conversation, "".join(words[:count])))
    return cut


def draw_training_data(
    requests: TrainingRequests, draw: DrawReplies, config: TrainingConfig, report: ReportProgress
) -> TrainingData:
    """Draw the target's words, or read them from the cache.

    Args:
        requests: the requests of the conversations.
        draw: draws the target's replies to conversations.
        config: the settings.
        report: progress, by stage.

    Raises:
        SafeDraftError: the target refuses every ordinary prompt, or cannot generate replies.
    """
    harmful = _draw_beginnings(begin_replies(requests.harmful, config, 0), draw, config, report)
    chosen = _choose_answers(requests, config)
    answered, declined = _draw_answers(chosen, draw, config, report)
    if not answered:
        raise SafeDraftError("the target refuses every ordinary prompt: nothing can be learned")
    return TrainingData(harmful, answered, declined)


def draw_check_data(
    requests: TrainingRequests, draw: DrawReplies, config: TrainingConfig, report: ReportProgress
) -> TrainingData:
    """Like ``draw_training_data``, for checks: of plain prompts, and no answer has begun."""
    sizes = {
        "dressed": 0,
        "direct_share": 1.0,
        "beginnings": config.checked,
        "answers": 2 * config.checked,
    }
    return draw_training_data(requests, draw, config.model_copy(update=sizes), report)


def count_drawn_tokens(requests: TrainingRequests, config: TrainingConfig) -> int:
    """The most tokens that ``draw_training_data`` has the target draw."""
    conversations = (1 + config.dressed) * len(requests.harmful)
    beginnings = min(conversations, config.beginnings) * _beginning_length(config)
    chosen = _choose_answers(requests, config)
    return beginnings + sum(
        config.brief_tokens if _is_brief(one) else config.answer_tokens for one in chosen
    )


def _beginning_length(config: TrainingConfig) -> int:
    return min(_BEGINNING_TOKENS, config.beginning_tokens)


def _choose_answers(requests: TrainingRequests, config: TrainingConfig) -> list[Begun]:
    begun = begin_replies(requests.ordinary, config, config.direct_share)
    begun = cut_openings(begun, config)
    return [begun[at] for at in _choose(len(begun), config.answers, config)]


def _draw_beginnings(
    begun: Sequence[Begun], draw: DrawReplies, config: TrainingConfig, report: ReportProgress
) -> list[TargetReply]:
    chosen = _choose(len(begun), config.beginnings, config)
    replies = draw(
        [begun[at].messages for at in chosen],
        max_new_tokens=_beginning_length(config),
        report=partial(report, "beginnings of harmful answers"),
    )
    texts = {
        at: reply.text
        for at, reply in zip(chosen, replies, strict=True)
        if not is_refusal(reply.text)
    }
    return [TargetReply(one, texts.get(at, ""), ended=False) for at, one in enumerate(begun)]


def _draw_answers(
    chosen: Sequence[Begun], draw: DrawReplies, config: TrainingConfig, report: ReportProgress
) -> tuple[list[TargetReply], list[TrainingRequest]]:
    brief = [one for one in chosen if _is_brief(one)]
    answered, declined = [], []
    for stage, tokens, asked in (
        ("answers", config.answer_tokens, [one for one in chosen if not _is_brief(one)]),
        ("first words of answers", config.brief_tokens, brief),
    ):
        replies = draw(
            [one.messages for one in asked], max_new_tokens=tokens, report=partial(report, stage)
        )
        for one, reply in zip(asked, replies, strict=True):
            if reply.text.strip() and not is_refusal(reply.text):
                answered.append(TargetReply(one, reply.text, reply.ended))
            elif one.conversation.surroundings == PLAIN and not one.opening:
                declined.append(one.conversation.request)
    return answered, declined


def _is_brief(begun: Begun) -> bool:
    """Whether the first words are enough: they show that the reply is no refusal."""
    conversation = begun.conversation
    dressed = conversation.surroundings != PLAIN
    return not begun.opening and (conversation.request.kind == "look_alike" or dressed)


def _choose_opening(request: TrainingRequest, rng: random.Random, config: TrainingConfig) -> str:
    generic = request.language == "en" and rng.random() < config.generic_share
    openings = read_generic_beginnings() if generic else read_openings(request.language)
    return fill_opening(rng.choice(openings), request.text)


def _choose(count: int, most: int, config: TrainingConfig) -> list[int]:
    """Choose at most ``most`` of ``count`` indices; a smaller ``most`` gives a subset."""
    order = list(range(count))
    random.Random(f"chosen {config.seed}").shuffle(order)
    return order[:most]
