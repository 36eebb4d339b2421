"""Figures with their 95% intervals; no data is no figure, and never zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy

_Z = 1.959963984540054  # the normal's 97.5% quantile
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, its 95% interval, and how much it rests on."""

    value: float | None = None
    """None where nothing was scored."""
    low: float | None = None
    """None where there is no interval: of nothing, or of a single number."""
    high: float | None = None
    count: int = 0
    unscored: int = 0
    """Samples that belong here and have no score; no part of ``count``."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def apart_from(self, other: Estimate) -> bool:
        """Whether the two intervals do not overlap."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return False
        return self.high < other.low or other.high < self.low


def rate(outcomes: Sequence[bool], unscored: int = 0) -> Estimate:
    """The share of true outcomes, with Wilson's score interval (JASA 22, 1927)."""
    n = len(outcomes)
    if not n:
        return Estimate(unscored=unscored)
    share = sum(outcomes) / n
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    spread = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # At 0 and 1 the interval ends there, which rounding would miss.
    low = centre - spread if share > 0 else 0.0
    high = centre + spread if share < 1 else 1.0
    return Estimate(share, low, high, n, unscored)


def mean(values: Sequence[float], unscored: int = 0) -> Estimate:
    """The mean, with a bootstrap interval."""
    return _bootstrapped(values, numpy.mean, unscored)


def median(values: Sequence[float], unscored: int = 0) -> Estimate:
    """The median, with a bootstrap interval."""
    return _bootstrapped(values, numpy.median, unscored)


def _bootstrapped(
    values: Sequence[float], statistic: Callable[..., Any], unscored: int
) -> Estimate:
    """Percentiles of the statistic over resamples, which are the same ones every time."""
    if not values:
        return Estimate(unscored=unscored)
    found = float(statistic(values))
    if len(values) == 1:
        return Estimate(found, count=1, unscored=unscored)
    chosen = numpy.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    resampled = statistic(numpy.asarray(values)[chosen], axis=1)
    low, high = numpy.percentile(resampled, [2.5, 97.5])
    return Estimate(found, float(low), float(high), len(values), unscored)


def average(parts: Sequence[Estimate]) -> Estimate:
    """The mean of estimates that weigh the same, whatever each rests on.

    The square of its interval's half is the sum of the squares of theirs over n².
    """
    value = fmean(part.value or 0.0 for part in parts)
    below = sum(((part.value or 0.0) - (part.low or 0.0)) ** 2 for part in parts) ** 0.5
    above = sum(((part.high or 0.0) - (part.value or 0.0)) ** 2 for part in parts) ** 0.5
    return Estimate(
        value,
        value - below / len(parts),
        value + above / len(parts),
        sum(part.count for part in parts),
        sum(part.unscored for part in parts),
    )
