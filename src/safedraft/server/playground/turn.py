"""A running request, and its replies as their tokens arrive."""

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

_TICK = 0.3  # seconds between two updates of running replies


@dataclass(frozen=True)
class Turn:
    """A message and its reply; a conversation is a list of turns."""

    prompt: str
    prefill: str
    reply: str
    """SSD's reply, which stays in the conversation; empty if there is none."""
    drawn: str
    """The turn in HTML."""


@dataclass(frozen=True)
class PageRequest:
    """A request with the settings of the page."""

    prompt: str
    prefill: str
    messages: list[Message]
    """The conversation, with ``prompt`` and ``prefill`` as its end."""
    sampling: SamplingParams
    config: SSDConfig
    compare: bool
    """Whether the target also answers alone."""


def build_messages(
    turns: Sequence[Turn], prompt: str, prefill: str, *, thinks: bool = False
) -> list[Message]:
    """Build the conversation that ends with ``prompt`` and the beginning of its reply.

    Args:
        turns: the earlier ones.
        prompt: what is asked.
        prefill: the beginning of the reply.
        thinks: whether replies begin with reasoning, which ``prefill`` then begins.

    Raises:
        SafeDraftError: as ``conversation``.
    """
    messages: list[Message] = []
    for turn in turns:
        if turn.reply:
            messages.append({"role": "user", "content": turn.prompt})
            messages.append({"role": "assistant", "content": turn.prefill + turn.reply})
    asked = [*messages, {"role": "user", "content": prompt}]
    return (
        conversation(asked, reasoning=prefill or None) if thinks else conversation(asked, prefill)
    )


class Column:
    """One running reply in HTML, to which tokens are only appended."""

    def __init__(self, job: Job, prefill: str) -> None:
        self.job = job
        self.drawn = drawing.draw_prefill(prefill)
        self.problem: APIError | None = None
        self._tokens: list[Token] = []
        self._ended = False

    async def follow(self) -> None:
        """Draw tokens until the reply ends or fails."""
        try:
            async for token in self.job:
                self.drawn += drawing.draw_token(token)
                self._tokens.append(token)
        except APIError as error:
            self.problem = error
        self._ended = True

    @property
    def figures(self) -> str:
        """The line of statistics."""
        return drawing.draw_figures(self.job.reply, self._state)

    @property
    def bins(self) -> list[Bin]:
        """The bins with match ratios and thresholds; an end token belongs to no bin."""
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


async def iterate_ticks(columns: Sequence[Column]) -> AsyncGenerator[None]:
    """Yield a few times per second while a reply runs, and once at the end."""
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


def describe_outcome(columns: Sequence[Column]) -> str:
    """Describe the result of a turn, in HTML."""
    for column in columns:
        if column.problem:
            return drawing.draw_problem(str(column.problem))
    costs = [column.job.reply.statistics for column in columns]
    if any(column.job.reply.finish_reason == "interrupted" for column in columns):
        return "Stopped."
    if len(costs) == 2 and costs[1].tokens_per_second:
        ratio = costs[0].tokens_per_second / costs[1].tokens_per_second
        return f"Done: SSD was {ratio:.2f} times as fast as the target alone."
    return "Done."
