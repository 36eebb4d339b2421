"""What a rule does at one position as an exact distribution, and counts compared with one.

The three numbers of a position are replaced by a lattice of points, so that the frequency of each
outcome is its probability but for a few parts in ``POINTS``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from safedraft.core import decide as choices
from safedraft.core.decide import Candidate, Draft
from safedraft.core.random import Use
from safedraft.core.request import Request
from safedraft.core.rows import WIDTH, Place, Rows, rank
from safedraft.core.rule import State

POINTS, STRIDE = 144, 89  # two Fibonacci numbers: (i / 144, 89 i / 144) fills the square evenly
TOLERANCE = 0.016


class Outcome(NamedTuple):
    """What can happen at a position."""

    token: int
    followed: bool
    matched: bool


def place_of(logits: Tensor, temperature: float = 0.0, width: int = WIDTH) -> Place:
    """A position at which a model says ``logits``, ``[V]``."""
    return Place(rank(logits[None], [temperature], width), 0)


def rows_of(
    target: Sequence[Tensor] | Tensor,
    draft: Sequence[Tensor] | Tensor,
    width: int = WIDTH,
    *,
    temperature: float = 0.0,
    whole: bool = False,
) -> Rows:
    """Positions at which the models say these logits, each ``[n, V]``."""
    sides = (
        rank(torch.stack([*logits]), [temperature] * len(logits), width)
        for logits in (target, draft)
    )
    places = [[Place(ranked, row) for row in range(len(ranked.tokens))] for ranked in sides]
    return Rows(*places, [whole] * len(places[0]))


def lattice_point(seed: int, position: int, use: Use) -> float:
    """In place of ``uniform``: a request with the seed i takes the i-th point of the lattice."""
    step = STRIDE if use is Use.CORRECT else 1
    return (seed * step % POINTS + 0.5) / POINTS


def law_of(
    request: Request,
    target: Tensor,
    draft: Tensor,
    make_state: Callable[[], State] | None = None,
) -> Counter[Outcome]:
    """The probability of each outcome of a drafted position. Needs the fixture ``lattice``.

    ``make_state`` makes the state of the position; by default it is the first one of a reply.
    """
    make_state = make_state or partial(request.rule.start, request.config, request.context)
    sampling = request.sampling
    p, q = (place_of(logits, sampling.temperature) for logits in (target, draft))
    seeded = [replace(request, sampling=sampling.replace(seed=seed)) for seed in range(POINTS)]
    law: Counter[Outcome] = Counter()
    for drafted, chance in enumerate(q.distribution().tolist()):
        draft_of = Draft(drafted, chance, q)
        candidates = [Candidate(one, make_state(), 0, draft_of, p) for one in seeded]
        for decision in choices.decide(candidates):
            law[Outcome(decision.token, decision.followed, decision.matched)] += chance / POINTS
    return law


def marginal(law: Counter[Outcome], size: int, **fixed: bool) -> list[float]:
    """Probability of each token, of outcomes whose fields are ``fixed``."""
    chances = [0.0] * size
    for outcome, chance in law.items():
        if all(getattr(outcome, name) is value for name, value in fixed.items()):
            chances[outcome.token] += chance
    return chances


def surprise(counts: Tensor, expected: Tensor) -> float:
    """How many standard deviations the counts' χ² lies above its mean (Wilson and Hilferty)."""
    kept = expected > 0
    assert counts[~kept].sum() == 0
    wanted = expected[kept].double() * counts.sum()
    freedom = int(kept.sum()) - 1
    chi_square = float(((counts[kept] - wanted) ** 2 / wanted).sum())
    spread = 2 / (9 * freedom)
    return float(((chi_square / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5)
