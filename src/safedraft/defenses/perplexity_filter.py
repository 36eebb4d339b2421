"""Perplexity filter: a message that reads like noise to the target is refused.

Alon and Kamfonas, arXiv 2308.14132; in windows, Jain et al., arXiv 2309.00614, Section 4.1. Made
against adversarial suffixes; attacks in fluent language pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safedraft.core.config import Constants, SamplingParams
from safedraft.core.errors import SafeDraftError
from safedraft.core.session import Reader
from safedraft.defenses.base import add_cost, last_user, refuse
from safedraft.rules.target_only import TargetOnly
from safedraft.text.messages import Message, conversation
from safedraft.text.results import GenerationResult, Statistics

if TYPE_CHECKING:
    from safedraft.pair import Pair

ROWS = 64  # tokens scored at once: a row of a large vocabulary takes most of a megabyte


@dataclass(frozen=True)
class PerplexityFilter:
    """Refuses when the last user message, or its worst window, is too perplexing for the target.

    Raises:
        SafeDraftError: a threshold or window outside its range.
    """

    threshold: float = 1000.0
    """Highest perplexity that is answered. The default is of the order that separates fluent text
    from random tokens; the scale is each target's own, so for a fair comparison set it to the
    highest that ordinary prompts, none of them reported on, reach with the pair."""
    window: int = 10
    """Tokens in a window; shorter messages are judged as a whole."""

    def __post_init__(self) -> None:
        if not self.threshold >= 1:
            raise SafeDraftError(f"a perplexity is at least 1; the threshold is {self.threshold}")
        if self.window < 1:
            raise SafeDraftError(f"a window has at least 1 token, not {self.window}")

    def __call__(
        self, pair: Pair, messages: Sequence[Message], sampling: SamplingParams, config: Constants
    ) -> GenerationResult:
        """The target's reply, or a refusal; a perplexity that is no number is refused too."""
        messages = conversation(messages)
        # Made first, so that what cannot be answered is an error whatever its perplexity.
        stream = pair.stream(messages, sampling=sampling, config=config, rule=TargetOnly())
        started = time.perf_counter()
        target = pair.reader("target")
        losses = message_losses(pair, target, messages[last_user(messages)]["content"])
        passes = worst_perplexity(losses, self.window) <= self.threshold
        work = Statistics(
            seconds=time.perf_counter() - started,
            target_passes=target.passes,
            target_seconds=target.seconds,
        )
        return add_cost(stream.drain() if passes else refuse(pair, stream.result), work)


perplexity_filter = PerplexityFilter()


def worst_perplexity(losses: Tensor, window: int) -> float:
    """The perplexity of the whole or of its worst window, whichever is higher.

    Args:
        losses: -log P of each token in nats, ``[n]``.
        window: tokens in a window.
    """
    means = [losses.mean()]
    if len(losses) >= window:
        means.append(losses.unfold(0, window, 1).mean(-1).max())
    return math.exp(torch.stack(means).max().item())


def message_losses(pair: Pair, target: Reader, text: str) -> Tensor:
    """-log P of each token of a user message, ``[n]``, where the target reads it: in its template.

    The message stands alone, because earlier turns could make any text look likely.
    """
    full, empty = (
        pair.prompts([{"role": "user", "content": content}]).target for content in (text, "")
    )
    start = _shared(full, empty)
    end = len(full) - _shared(full[start:][::-1], empty[start:][::-1])
    return _losses(target, full[:end], max(start, 1))


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False)))


def _losses(target: Reader, ids: Sequence[int], start: int) -> Tensor:
    """-log P of each of ``ids[start:]`` given all before it; ``start`` is at least 1."""
    losses = [torch.zeros(0)]
    fed = 0
    for at in range(start, len(ids), ROWS):
        wanted = ids[at : at + ROWS]
        last = at + len(wanted) - 1
        rows = target.read(ids[fed:last], len(wanted))
        losses.append(-rows.gather(-1, torch.tensor(wanted)[:, None])[:, 0].log())
        fed = last
    return torch.cat(losses)
