"""Estimates with 95% intervals; without data the value is None, and never zero."""

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
    """A value, its 95% interval and its number of samples."""

    value: float | None = None
    """None if no sample was scored."""
    low: float | None = None
    """None if there is no interval, as for a single number."""
    high: float | None = None
    count: int = 0
    unscored: int = 0
    """Number of samples without a score; not included in ``count``."""

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)

    def overlaps(self, other: Estimate) -> bool:
        """Whether the two intervals overlap; true if one of them is missing."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return True
        return self.low <= other.high and other.low <= self.high


def rate(outcomes: Sequence[bool], unscored: int = 0) -> Estimate:
    """The share of true outcomes, with Wilson's score interval (JASA 22, 1927)."""
    n = len(outcomes)
    if not n:
        return Estimate(unscored=unscored)
    share = sum(outcomes) / n
    center = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    spread = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # At shares of 0 and 1 the interval ends exactly there; rounding would miss it.
    low = center - spread if share > 0 else 0.0
    high = center + spread if share < 1 else 1.0
    return Estimate(share, low, high, n, unscored)


def mean(values: Sequence[float], unscored: int = 0) -> Estimate:
    """The mean, with a bootstrap interval."""
    return _bootstrap(values, numpy.mean, unscored)


def median(values: Sequence[float], unscored: int = 0) -> Estimate:
    """The median, with a bootstrap interval."""
    return _bootstrap(values, numpy.median, unscored)


def _bootstrap(values: Sequence[float], statistic: Callable[..., Any], unscored: int) -> Estimate:
    """Percentiles of the statistic over resamples, with a fixed seed."""
    if not values:
        return Estimate(unscored=unscored)
    value = float(statistic(values))
    if len(values) == 1:
        return Estimate(value, count=1, unscored=unscored)
    indices = numpy.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    resampled = statistic(numpy.asarray(values)[indices], axis=1)
    low, high = numpy.percentile(resampled, [2.5, 97.5])
    return Estimate(value, float(low), float(high), len(values), unscored)


def average(parts: Sequence[Estimate]) -> Estimate:
    """The unweighted mean of estimates, whatever their numbers of samples.

    The squared half-width of its interval is the sum of their squared half-widths divided by n².
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
