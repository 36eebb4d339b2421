"""No defense: the target alone, one token a pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from torch import Tensor

from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.core.decode import Step, forward, take
from safedraft.core.sampling import Draws, distribution
from safedraft.core.session import Session


def target_only(
    target: Session,
    draft: Session,
    target_prompt: Sequence[int],
    draft_prompt: Sequence[int],
    config: SSDConfig,
    sampling: SamplingParams,
    end_tokens: Collection[int] = (),
) -> Iterator[Step]:
    """As ``decode``, with the draft never asked."""
    draws = Draws(sampling.seed or 0)
    unseen = list(target_prompt)
    for position in range(sampling.max_new_tokens):
        p = forward(target, unseen, 1, sampling.temperature)[0]
        step = own_step(p, sampling, draws[position].propose, position)
        yield step
        if step.token in end_tokens:
            return
        unseen = [step.token]


def own_step(p: Tensor, sampling: SamplingParams, uniform: float, block: int) -> Step:
    """A position that the target decides by itself, from its distribution P, ``[V]``."""
    f = p if sampling.greedy else distribution(p, sampling)
    token = take(f, sampling, uniform)
    return Step(token, False, None, 0.0, None, p[token].item(), block)
