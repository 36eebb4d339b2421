"""A request on its way: what is asked, and one reply beside another as their tokens come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.server.errors import APIError
from safedraft.server.playground import drawing
from safedraft.server.playground.bins import Bin, split_bins
from safedraft.server.scheduler import Job
from safedraft.text.messages import Message, conversation
from safedraft.text.results import Token

_TICK = 0.3  # seconds between two pictures of replies that grow


@dataclass(frozen=True)
class Turn:
    """What was asked and said; a conversation is a list of them."""

    prompt: str
    prefill: str
    reply: str
    """SSD's, which the conversation goes on with; empty if there is none."""
    drawn: str
    """All of it in HTML."""


@dataclass(frozen=True)
class Asked:
    """A request as it is set on the page."""

    prompt: str
    prefill: str
    messages: list[Message]
    """The conversation, with ``prompt`` and ``prefill`` as its end."""
    sampling: SamplingParams
    config: SSDConfig
    compare: bool
    """Whether the target answers alone, too."""


def messages_of(turns: Sequence[Turn], prompt: str, prefill: str) -> list[Message]:
    """The conversation that ``prompt`` goes on with.

    Raises:
        SafeDraftError: as ``conversation``.
    """
    said: list[Message] = []
    for turn in turns:
        if turn.reply:
            said.append({"role": "user", "content": turn.prompt})
            said.append({"role": "assistant", "content": turn.prefill + turn.reply})
    return conversation([*said, {"role": "user", "content": prompt}], prefill)


class Column:
    """One reply, drawn as it grows: what is drawn is never changed, only added to."""

    def __init__(self, job: Job, prefill: str) -> None:
        self.job = job
        self.drawn = drawing.draw_prefill(prefill)
        self.problem: APIError | None = None
        self._tokens: list[Token] = []
        self._ended = False

    async def follow(self) -> None:
        """Draw until the reply ends, in whatever way."""
        try:
            async for token in self.job:
                self.drawn += drawing.draw_token(token)
                self._tokens.append(token)
        except APIError as error:
            self.problem = error
        self._ended = True

    @property
    def figures(self) -> str:
        """Its line of figures."""
        return drawing.figures(self.job.reply, self._state)

    @property
    def bins(self) -> list[Bin]:
        """Its match ratios and thresholds; an end token, which the switch never sees, in none."""
        ended = self.job.reply.finish_reason == "stop"
        return split_bins(self._tokens[:-1] if ended else self._tokens)

    @property
    def _state(self) -> str:
        if self.problem:
            return "broken off"
        if not self._ended:
            return "" if self._tokens else "waits for its first token …"
        ends = {"length": "cut at its limit of tokens", "interrupted": "stopped"}
        return ends.get(self.job.reply.finish_reason, "")


async def ticks(columns: Sequence[Column]) -> AsyncGenerator[None]:
    """A few a second while a reply grows, and one after all."""
    following = [asyncio.create_task(column.follow()) for column in columns]
    try:
        growing = set(following)
        while growing:
            yield
            _, growing = await asyncio.wait(growing, timeout=_TICK)
        yield
    finally:
        for task in following:
            task.cancel()


def outcome(columns: Sequence[Column]) -> str:
    """How a turn went, in HTML."""
    for column in columns:
        if column.problem:
            return drawing.problem(str(column.problem))
    costs = [column.job.reply.statistics for column in columns]
    if any(column.job.reply.finish_reason == "interrupted" for column in columns):
        return "Stopped."
    if len(costs) == 2 and costs[1].tokens_per_second:
        ratio = costs[0].tokens_per_second / costs[1].tokens_per_second
        return f"Done: SSD was {ratio:.2f} times as fast as the target alone."
    return "Done."
