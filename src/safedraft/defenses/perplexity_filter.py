"""Perplexity filter: a message with a high perplexity under the target is refused.

Alon and Kamfonas, arXiv 2308.14132; in windows, Jain et al., arXiv 2309.00614, Section 4.1. The
filter detects adversarial suffixes; attacks in fluent language pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from safedraft.core.config import Constants, SamplingParams
from safedraft.core.errors import SafeDraftError
from safedraft.core.session import Reader
from safedraft.defenses.base import add_cost, answer_undefended, find_last_user, refuse
from safedraft.text.messages import Message, conversation
from safedraft.text.results import GenerationResult, Statistics

if TYPE_CHECKING:
    from safedraft.pair import Pair

ROWS = 64  # tokens scored at once: a row of a large vocabulary takes nearly a megabyte


@dataclass(frozen=True)
class PerplexityFilter:
    """Refuses if the perplexity of the last user message, or of its worst window, is too high.

    Raises:
        SafeDraftError: the threshold or the window is out of range.
    """

    threshold: float = 1000.0
    """Maximum perplexity that is answered. The default has the magnitude that separates fluent text
    from random tokens. The scale depends on the target: for a fair comparison, set it to the
    maximum over ordinary prompts that no report uses."""
    window: int = 10
    """Number of tokens in a window; shorter messages are scored as a whole."""
    needs_sessions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.threshold >= 1:
            raise SafeDraftError(f"a perplexity is at least 1; the threshold is {self.threshold}")
        if self.window < 1:
            raise SafeDraftError(f"a window has at least 1 token, not {self.window}")

    def __call__(
        self, pair: Pair, messages: Sequence[Message], sampling: SamplingParams, config: Constants
    ) -> GenerationResult:
        """Return the target's reply, or a refusal, also if the perplexity is NaN."""
        messages = conversation(messages)
        # The refusal comes first, so that an invalid conversation is an error at any perplexity.
        refusal = refuse(pair, messages, sampling)
        started = time.perf_counter()
        target = pair.reader("target")
        losses = compute_losses(pair, target, messages[find_last_user(messages)]["content"])
        passes = compute_worst_perplexity(losses, self.window) <= self.threshold
        work = Statistics(
            seconds=time.perf_counter() - started,
            target_passes=target.passes,
            target_rows=len(losses),
            target_seconds=target.seconds,
        )
        if not passes:
            return add_cost(refusal, work)
        return add_cost(answer_undefended(pair, messages, sampling, config), work)


perplexity_filter = PerplexityFilter()


def compute_worst_perplexity(losses: Tensor, window: int) -> float:
    """Return the larger of the perplexities of the whole message and of its worst window.

    Args:
        losses: -log P of each token in nats, ``[n]``.
        window: number of tokens in a window.
    """
    means = [losses.mean()]
    if len(losses) >= window:
        means.append(losses.unfold(0, window, 1).mean(-1).max())
    return math.exp(torch.stack(means).max().item())


def compute_losses(pair: Pair, target: Reader, text: str) -> Tensor:
    """Compute -log P of each token of a user message, ``[n]``, inside the target's chat template.

    Earlier turns are left out, because they could make any text likely.
    """
    full, empty = (
        pair.prompts([{"role": "user", "content": content}]).target for content in (text, "")
    )
    start = _count_shared(full, empty)
    end = len(full) - _count_shared(full[start:][::-1], empty[start:][::-1])
    return _score(target, full[:end], max(start, 1))


def _count_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Count the tokens of the longest common prefix of two sequences."""
    return sum(
        1 for _ in takewhile(lambda both: both[0] == both[1], zip(first, second, strict=False))
    )


def _score(target: Reader, ids: Sequence[int], start: int) -> Tensor:
    """Compute -log P of each of ``ids[start:]`` given the ids before it; ``start`` >= 1."""
    losses = [torch.zeros(0)]
    length_read = 0
    for at in range(start, len(ids), ROWS):
        scored = ids[at : at + ROWS]
        last = at + len(scored) - 1
        rows = target.read(ids[length_read:last], len(scored))
        losses.append(-rows.gather(-1, torch.tensor(scored)[:, None])[:, 0].log())
        length_read = last
    return torch.cat(losses)
