"""Replies of the target alone, drawn many at a time before a defense needs them.

On a processor that is several times as fast as one by one. What a defense asks the target may hang
on what the target said before (its verdict on a reply, say), so drawing goes in rounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.core.errors import SafeDraftError
from safedraft.defenses.base import Asking
from safedraft.pair import Pair
from safedraft.prompts.drawn import Drawn, draw_replies
from safedraft.text.chat import Message, Reply, Statistics


class _Unknown(Exception):
    """The target has not been asked this yet."""

    def __init__(self, messages: Sequence[Message], sampling: SamplingParams) -> None:
        self.messages, self.sampling = messages, sampling

    @property
    def key(self) -> str:
        return json.dumps([list(self.messages), self.sampling.max_new_tokens])


def draw_ahead(
    defense: Asking,
    pair: Pair,
    conversations: Sequence[Sequence[Message]],
    sampling: SamplingParams,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Draw all that the defense asks the target when it answers these; the replies are cached."""
    known: dict[str, Reply] = {}

    def ask(
        pair: Pair, messages: Sequence[Message], sampling: SamplingParams, config: SSDConfig
    ) -> Reply:
        asked = _Unknown(messages, pair.fitted(pair.prompts(messages), sampling))
        if asked.key not in known:
            raise asked
        return known[asked.key]

    def first_unknown(messages: Sequence[Message]) -> _Unknown | None:
        try:
            defense(pair, messages, sampling, pair.config, ask)
        except _Unknown as unknown:
            return unknown
        except SafeDraftError:
            return None  # it is told when it is this conversation's turn
        return None

    waiting = list(conversations)
    while missing := [(one, m) for m in waiting if (one := first_unknown(m))]:
        unknown, waiting = map(list, zip(*missing, strict=True))
        replies = draw_replies(
            pair.target,
            [one.messages for one in unknown],
            max_new_tokens=[one.sampling.max_new_tokens for one in unknown],
            report=report,
        )
        for one, drawn in zip(unknown, replies, strict=True):
            known[one.key] = _reply(pair, one.messages, drawn)


def drawn_reply(
    pair: Pair, messages: Sequence[Message], sampling: SamplingParams, config: SSDConfig
) -> Reply:
    """The target's own greedy reply, from those that were drawn many at a time; it has no seconds.

    Raises:
        SafeDraftError: the prompt leaves no room for a reply.
    """
    sampling = pair.fitted(pair.prompts(messages), sampling)
    (drawn,) = draw_replies(pair.target, [messages], max_new_tokens=sampling.max_new_tokens)
    return _reply(pair, messages, drawn)


def _reply(pair: Pair, messages: Sequence[Message], drawn: Drawn) -> Reply:
    tokenizer = pair.target.tokenizer
    assert tokenizer is not None
    tokens = len(tokenizer.encode(drawn.text, add_special_tokens=False)) + drawn.ended
    return Reply(
        drawn.text,
        "stop" if drawn.ended else "length",
        statistics=Statistics(len(pair.prompts(messages).target), tokens, target_passes=tokens),
    )
