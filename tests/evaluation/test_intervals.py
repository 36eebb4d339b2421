"""Intervals against figures worked out elsewhere; no data is no figure."""

from __future__ import annotations

import math

import pytest

from safedraft.evaluation.intervals import Estimate, mean, median, rate


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [  # Wilson's interval in closed form: (2ns + z² ± z √(z² + 4ns(1 − s))) / (2(n + z²))
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 1, 0.2065, 1.0),
        (5, 10, 0.2366, 0.7634),
        (17, 20, 0.6396, 0.9476),
    ],
)
def test_wilsons_interval(successes: int, count: int, low: float, high: float) -> None:
    found = rate([True] * successes + [False] * (count - successes), unscored=3)
    assert found.value == successes / count
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert (found.count, found.unscored) == (count, 3)


@pytest.mark.parametrize("estimate", [rate, mean, median])
def test_no_data_is_no_figure(estimate: object) -> None:
    assert estimate([], 2) == Estimate(None, None, None, 0, 2)  # type: ignore[operator]


def test_one_number_has_no_interval() -> None:
    assert mean([2.0]) == Estimate(2.0, None, None, 1)


def test_a_bootstrap_agrees_with_theory_and_with_itself() -> None:
    values = [float(number) for number in range(100)]
    found = mean(values)
    assert found.value == 49.5
    spread = 1.96 * math.sqrt(sum((v - 49.5) ** 2 for v in values) / 99 / 100)
    assert found.low == pytest.approx(49.5 - spread, abs=0.6)
    assert found.high == pytest.approx(49.5 + spread, abs=0.6)
    assert mean(values) == found
    assert median([1.0, 2.0, 90.0]).value == 2.0


def test_overlapping_intervals_are_told_from_others() -> None:
    low, high = rate([False] * 20), rate([True] * 20)
    assert not low.overlaps(high)
    assert not high.overlaps(low)
    assert low.overlaps(rate([True, False]))
    assert low.overlaps(Estimate(1.0))
