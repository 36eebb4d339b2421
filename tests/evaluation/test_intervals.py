"""Intervals against figures worked out elsewhere; no data is no figure."""

from __future__ import annotations

import math

import pytest

from safedraft.evaluation.intervals import (
    Estimate,
    mcnemar,
    mean,
    median,
    paired_difference,
    rate,
)


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


def pairs(both: int, only_ours: int, only_theirs: int, neither: int) -> tuple[list[bool], ...]:
    counts = {(1, 1): both, (1, 0): only_ours, (0, 1): only_theirs, (0, 0): neither}
    rows = [outcomes for outcomes, count in counts.items() for _ in range(count)]
    return [bool(ours) for ours, _ in rows], [bool(theirs) for _, theirs in rows]


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [  # Newcombe (1998), Table III, method 10; the last from Altman, Statistics with Confidence
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3292),
        ((18, 12, 2, 18), 0.0562, 0.3290),
        ((36, 14, 0, 0), 0.1528, 0.4167),
        ((35, 14, 0, 1), 0.1461, 0.4175),
        ((18, 14, 0, 18), 0.1441, 0.3963),
        ((2, 97, 1, 0), 0.8721, 0.9854),
        ((1, 97, 1, 1), 0.8736, 0.9850),
        ((0, 30, 0, 0), 0.8395, 1.0),
        ((54, 0, 0, 0), -0.0664, 0.0664),
        ((30, 0, 0, 24), -0.0358, 0.0358),
        ((14, 5, 0, 22), 0.0115, 0.2265),
    ],
)
def test_newcombes_paired_interval(
    counts: tuple[int, int, int, int], low: float, high: float
) -> None:
    ours, theirs = pairs(*counts)
    estimate = paired_difference(ours, theirs, unscored=2)
    assert estimate.value == pytest.approx((counts[1] - counts[2]) / sum(counts))
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1.5e-4)
    assert (estimate.count, estimate.unscored) == (sum(counts), 2)
    mirrored = paired_difference(theirs, ours)
    assert (mirrored.low, mirrored.high) == pytest.approx((-high, -low), abs=1.5e-4)


@pytest.mark.parametrize(
    ("counts", "p"),
    [  # 2 P(X <= smaller), X binomial with 1/2: worked out by hand
        ((1, 1, 7, 12), 18 / 256),
        ((5, 0, 6, 5), 2 / 64),
        ((3, 4, 4, 3), 1.0),
        ((9, 0, 0, 9), 1.0),
        ((0, 10, 2, 0), 2 * (1 + 12 + 66) / 4096),
    ],
)
def test_mcnemars_exact_test(counts: tuple[int, int, int, int], p: float) -> None:
    ours, theirs = pairs(*counts)
    assert mcnemar(ours, theirs) == mcnemar(theirs, ours) == pytest.approx(p)


def test_pairs_have_two_outcomes() -> None:
    assert paired_difference([], [], 3) == Estimate(unscored=3)
    for compare in (paired_difference, mcnemar):
        with pytest.raises(ValueError, match="argument 2 is shorter"):
            compare([True, False], [True])
