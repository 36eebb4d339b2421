"""Estimates with 95% intervals; without data the value is None, and never zero."""

from __future__ import annotations

import math
from collections import Counter
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
    return Estimate(sum(outcomes) / n, *_wilson(sum(outcomes), n), n, unscored)


def _wilson(successes: int, n: int) -> tuple[float, float]:
    """Both ends of Wilson's interval for a share of ``n`` outcomes."""
    share = successes / n
    center = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    spread = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # At shares of 0 and 1 the interval ends exactly there; rounding would miss it.
    return center - spread if share > 0 else 0.0, center + spread if share < 1 else 1.0


def paired_difference(ours: Sequence[bool], theirs: Sequence[bool], unscored: int = 0) -> Estimate:
    """The share of true outcomes in ``ours`` minus that in ``theirs``, for the same samples.

    The interval is method 10 of Newcombe (Statistics in Medicine 17, 1998, 2635-2650): Wilson's
    intervals of both shares, combined with their correlation, which is corrected for continuity.

    Args:
        ours: outcomes of one configuration, one per sample.
        theirs: outcomes of the other configuration, for the same samples in the same order.
        unscored: number of samples that lack one of the two outcomes.

    Raises:
        ValueError: the two have different lengths.
    """
    both, only_ours, only_theirs, neither = _count_pairs(ours, theirs)
    n = both + only_ours + only_theirs + neither
    if not n:
        return Estimate(unscored=unscored)
    our_share, their_share = (both + only_ours) / n, (both + only_theirs) / n
    our_low, our_high = _wilson(both + only_ours, n)
    their_low, their_high = _wilson(both + only_theirs, n)
    phi = _correlation(both, only_ours, only_theirs, neither)
    difference = our_share - their_share
    below = _combine(our_share - our_low, their_high - their_share, phi)
    above = _combine(our_high - our_share, their_share - their_low, phi)
    return Estimate(
        difference, max(difference - below, -1.0), min(difference + above, 1.0), n, unscored
    )


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Two-sided p-value of McNemar's exact test: do paired outcomes have the same share of true?

    It is the binomial test of the pairs in which the outcomes differ, and 1 if there are none.

    Raises:
        ValueError: the two have different lengths.
    """
    _, only_ours, only_theirs, _ = _count_pairs(ours, theirs)
    n = only_ours + only_theirs
    tail = sum(math.comb(n, k) for k in range(min(only_ours, only_theirs) + 1))
    return min(1.0, 2 * tail / (1 << n))


def _count_pairs(ours: Sequence[bool], theirs: Sequence[bool]) -> tuple[int, int, int, int]:
    """Numbers of pairs: both true, only ours, only theirs, neither."""
    pairs = Counter((bool(a), bool(b)) for a, b in zip(ours, theirs, strict=True))
    return pairs[True, True], pairs[True, False], pairs[False, True], pairs[False, False]


def _correlation(both: int, only_ours: int, only_theirs: int, neither: int) -> float:
    """Phi of the four numbers of pairs; a positive one is corrected for continuity."""
    margins = (both + only_ours, only_theirs + neither, both + only_theirs, only_ours + neither)
    if not all(margins):
        return 0.0
    product: float = both * neither - only_ours * only_theirs
    if product > 0:
        pairs = both + only_ours + only_theirs + neither
        product = max(product - pairs / 2, 0)
    return product / math.sqrt(math.prod(margins))


def _combine(one: float, other: float, phi: float) -> float:
    """Width of a difference's interval on one side, from the widths for its two terms."""
    return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))


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
