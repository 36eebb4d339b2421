"""Checks of single positions on an accelerator: the composite of random logits, and draws."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import NamedTuple

import torch
from cuda_models import SIZES, Bench, Outcome
from torch import Tensor

from safedraft.core.composite import OUTSIDE, Scores, Setting, composite
from safedraft.core.random import Use, uniform
from safedraft.core.rows import Place, Rows, rank
from safedraft.core.sampling import draw

TOLERANCE = 1e-6
"""The most by which a number of the composite may differ between devices and batch sizes."""

BOUND = 3.72
"""Standard deviations that a normal number exceeds with a probability of 1 in 10,000."""

_TOGETHER = 64
_OUTCOMES = 512
_DRAWN_AT_ONCE = 5000
_SETTINGS = (
    Setting(False, 0.3, 10),
    Setting(True, 0.8, 10),
    Setting(False, 0.6, 3, 2),
    Setting(True, 1.0, 20),
    Setting(False, 0.1, 40),
)
_TEMPERATURES = (0.0, 0.7, 1.0, 1.3)


class Logits(NamedTuple):
    """Logits of both models at n positions, ``[n, V]``, in float32."""

    target: Tensor
    draft: Tensor


def check_rows(bench: Bench, outcome: Outcome) -> None:
    """Sample spaces and F are those of a processor, and the same alone and among 64 rows.

    With logits rounded to bfloat16 many tokens tie, and the order of ties has to be the same.
    """
    for name, dtype in (("float32", torch.float32), ("bfloat16, with ties", torch.bfloat16)):
        rows = spaces = 0
        furthest = 0.0
        for logits in _make_logits(bench.workload.rows, dtype):
            expected = _score(logits, torch.device("cpu"))
            together = _score(logits, bench.device)
            first = Logits(*(side[:1] for side in logits))
            alone = _score(first, bench.device)
            rows += len(expected.tokens)
            for one, other in ((expected, together), (_take_first(together, alone), alone)):
                differing, largest = _compare(one, other)
                spaces += differing
                furthest = max(furthest, largest)
        outcome.figures[name] = {"rows": rows, "spaces": spaces, "largest difference": furthest}
        outcome.require(not spaces, f"{name}: {spaces} of {rows} sample spaces differ")
        small = furthest <= TOLERANCE
        outcome.require(small, f"{name}: F differs by {furthest:.1e}")


def _make_logits(count: int, dtype: torch.dtype) -> Iterator[Logits]:
    generator = torch.Generator().manual_seed(11)
    shape = _TOGETHER, SIZES["1.5B"].vocabulary
    for _ in range(0, count, _TOGETHER):
        target = 3 * torch.randn(shape, generator=generator)
        draft = 0.8 * target + 1.5 * torch.randn(shape, generator=generator)
        yield Logits(target.to(dtype).float(), draft.to(dtype).float())


def _score(logits: Logits, device: torch.device) -> Scores:
    count = len(logits.target)
    temperatures = list(islice(cycle(_TEMPERATURES), count))
    sides = (
        [Place(ranked, row) for row in range(count)]
        for ranked in (rank(side.to(device), temperatures) for side in logits)
    )
    return composite(Rows(*sides), list(islice(cycle(_SETTINGS), count)))


def _take_first(scores: Scores, alone: Scores) -> Scores:
    """The first row, without what fills it up to the longest of its neighbors."""
    width = alone.tokens.shape[-1]
    parts = (part[:1, :width] for part in (scores.tokens, scores.values, scores.draft))
    return Scores(*parts, scores.whole[:1], scores.open[:1])


def _compare(one: Scores, other: Scores) -> tuple[int, float]:
    """How many sample spaces differ, and by how much F does in the others."""
    if one.tokens.shape != other.tokens.shape:
        return len(one.tokens), 0.0
    same = (one.tokens == other.tokens).all(-1)
    inside = one.values[same] != OUTSIDE
    apart = (one.values[same] - other.values[same])[inside].abs()
    return int((~same).sum()), float(apart.max()) if apart.numel() else 0.0


def check_draws(bench: Bench, outcome: Outcome) -> None:
    """Draws on the device have the distribution that they are drawn from (chi-square)."""
    generator = torch.Generator().manual_seed(12)
    for name, spread in (("flat", 0.5), ("steep", 3.0)):
        mass = (spread * torch.randn(_OUTCOMES, generator=generator)).softmax(-1)
        counts = torch.zeros(_OUTCOMES)
        for start in range(0, bench.workload.draws, _DRAWN_AT_ONCE):
            numbers = [uniform(1, start + at, Use.PROPOSE) for at in range(_DRAWN_AT_ONCE)]
            drawn = draw(mass.to(bench.device).expand(_DRAWN_AT_ONCE, -1), numbers)
            counts += drawn.cpu().bincount(minlength=_OUTCOMES)
        deviation = measure_deviation(counts, mass)
        outcome.figures[name] = {"draws": int(counts.sum()), "deviation": deviation}
        outcome.require(deviation < BOUND, f"{name}: {deviation:.1f} standard deviations apart")


def measure_deviation(counts: Tensor, mass: Tensor) -> float:
    """Pearson's chi-square of counts, as a normal number (Wilson and Hilferty).

    Outcomes of which fewer than five are expected are counted together.
    """
    expected = mass.double() * counts.sum()
    group = (expected >= 5).long().cumsum(0) * (expected >= 5)  # 0 for all rare ones
    found, due = (
        torch.zeros(len(mass) + 1).double().index_add_(0, group, part.double())
        for part in (counts, expected)
    )
    found, due = found[due > 0], due[due > 0]
    freedom = len(due) - 1
    statistic = ((found - due).square() / due).sum()
    share = 2 / (9 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - 1 + share) / share**0.5)
