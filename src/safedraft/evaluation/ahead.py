"""Replies of the target alone, generated in batches before a defense needs them.

On a CPU, batches are several times as fast as single replies. A defense's later question to the
target can depend on an earlier reply, as a verdict on a reply does, so generation goes in rounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from safedraft.core.config import Constants, SamplingParams
from safedraft.core.errors import SafeDraftError
from safedraft.defenses.base import PromptDefense
from safedraft.pair import Pair
from safedraft.prompts.drawn import DrawnReply, draw_replies
from safedraft.text.messages import Message
from safedraft.text.results import GenerationResult, Statistics


class _MissingReplyError(Exception):
    """The target's reply to these messages has not been generated yet."""

    def __init__(self, messages: Sequence[Message], sampling: SamplingParams) -> None:
        self.messages, self.sampling = messages, sampling

    @property
    def key(self) -> str:
        return json.dumps([list(self.messages), self.sampling.max_new_tokens])


def draw_ahead(
    defense: PromptDefense,
    pair: Pair,
    conversations: Sequence[Sequence[Message]],
    sampling: SamplingParams,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Generate and cache the target's replies that a defense needs to answer conversations."""
    replies: dict[str, GenerationResult] = {}

    def ask(
        pair: Pair, messages: Sequence[Message], sampling: SamplingParams, config: Constants
    ) -> GenerationResult:
        missing = _MissingReplyError(messages, pair.fit(pair.prompts(messages), sampling))
        if missing.key not in replies:
            raise missing
        return replies[missing.key]

    def find_missing(messages: Sequence[Message]) -> _MissingReplyError | None:
        try:
            defense(pair, messages, sampling, pair.config, ask)
        except _MissingReplyError as missing:
            return missing
        except SafeDraftError:
            return None  # raised again when this conversation is answered
        return None

    waiting = list(conversations)
    while missing := [(question, m) for m in waiting if (question := find_missing(m))]:
        questions, waiting = map(list, zip(*missing, strict=True))
        drawn_replies = draw_replies(
            pair.target,
            [question.messages for question in questions],
            max_new_tokens=[question.sampling.max_new_tokens for question in questions],
            report=report,
        )
        for question, drawn in zip(questions, drawn_replies, strict=True):
            replies[question.key] = _to_result(pair, question.messages, drawn)


def look_up_reply(
    pair: Pair, messages: Sequence[Message], sampling: SamplingParams, config: Constants
) -> GenerationResult:
    """The target's greedy reply, from the cache of ``draw_ahead``; its statistics have no seconds.

    Raises:
        SafeDraftError: the prompt leaves no room for a reply.
    """
    sampling = pair.fit(pair.prompts(messages), sampling)
    (drawn,) = draw_replies(pair.target, [messages], max_new_tokens=sampling.max_new_tokens)
    return _to_result(pair, messages, drawn)


def _to_result(pair: Pair, messages: Sequence[Message], drawn: DrawnReply) -> GenerationResult:
    tokenizer = pair.target.tokenizer
    assert tokenizer is not None
    tokens = len(tokenizer.encode(drawn.text, add_special_tokens=False)) + drawn.ended
    length = len(pair.prompts(messages).target)
    statistics = Statistics(length, tokens, target_passes=tokens, target_rows=tokens)
    return GenerationResult(drawn.text, "stop" if drawn.ended else "length", statistics=statistics)
