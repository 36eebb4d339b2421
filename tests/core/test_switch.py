"""The switch, by tables: which scheme, α and threshold after which matches."""

from __future__ import annotations

import pytest

from safedraft.core.config import Scheme, SSDConfig
from safedraft.core.switch import Switch


def run(matches: str, config: SSDConfig) -> list[tuple[str, float, float]]:
    """Scheme initial, α and threshold after every full bin; ``x`` is a match."""
    switch, states = Switch(config), []
    for at, match in enumerate(matches, start=1):
        switch.observe(match == "x")
        if at % config.bin_size == 0:
            states.append((switch.scheme[0], round(switch.alpha, 10), round(switch.threshold, 10)))
    return states


FULL, NONE, HALF = "xxxxxxx", ".......", "xxx...."


@pytest.mark.parametrize(
    ("matches", "states"),
    [
        # relaxing in intersection: the threshold falls, α decays to its least
        (FULL * 3, [("i", 0.45, 0.5), ("i", 0.3, 0.4), ("i", 0.3, 0.3)]),
        # to union and back: both start again
        (NONE + FULL, [("u", 0.8, 0.6), ("i", 0.6, 0.6)]),
        # staying in union relaxes the threshold alone
        (NONE * 2, [("u", 0.8, 0.6), ("u", 0.8, 0.5)]),
        # in union, the falling threshold lets 3 of 7 back into intersection
        (NONE + HALF * 3, [("u", 0.8, 0.6), ("u", 0.8, 0.5), ("u", 0.8, 0.4), ("i", 0.6, 0.6)]),
        # the threshold never falls below nothing, and nothing is below it
        (
            FULL * 7 + NONE,
            [*[("i", 0.45, 0.5)], *[("i", 0.3, t / 10) for t in (4, 3, 2, 1, 0, 0, 0)]],
        ),
    ],
)
def test_tables(matches: str, states: list[tuple[str, float, float]]) -> None:
    assert run(matches, SSDConfig(alpha_intersection=0.6)) == states


def test_a_bin_gives_its_match_ratio_at_its_end_and_nothing_before() -> None:
    switch = Switch(SSDConfig(bin_size=4))
    ratios = [switch.observe(match == "x") for match in "x.x....xxxxx"]
    assert ratios == [*[None] * 3, 0.5, *[None] * 3, 0.25, *[None] * 3, 1.0]
    assert switch.decided == 12


def test_a_weak_start_rises_to_its_least() -> None:
    config = SSDConfig(alpha_intersection=0.1, alpha_min=0.25)
    assert Switch(config).alpha == 0.1
    assert run(FULL, config) == [("i", 0.25, 0.5)]


def test_the_first_scheme_can_be_another_than_the_configurations() -> None:
    switch = Switch(SSDConfig(), Scheme.UNION)
    assert (switch.scheme, switch.alpha, switch.threshold) == (Scheme.UNION, 0.8, 0.6)


def test_the_ratio_must_be_strictly_less() -> None:
    config = SSDConfig(bin_size=5)
    assert run("xxx..", config) == [("i", 0.3, 0.5)]
    assert run("xx...", config) == [("u", 0.8, 0.6)]


def test_it_can_start_in_union_and_relaxes_from_there() -> None:
    config = SSDConfig(alpha_intersection=0.6, initial_scheme=Scheme.UNION)
    assert Switch(config).alpha == 0.8
    assert run(NONE + FULL * 2, config) == [("u", 0.8, 0.5), ("i", 0.6, 0.6), ("i", 0.45, 0.5)]


def test_union_lasts_as_many_bins_as_it_has_to() -> None:
    config = SSDConfig(union_bins=3)
    held = [("u", 0.8, 0.6), ("u", 0.8, 0.5), ("u", 0.8, 0.4)]
    assert run(NONE + FULL * 3, config) == [*held, ("i", 0.3, 0.6)]
    # The next time as well.
    assert run((NONE + FULL * 3) * 2, config) == [*held, ("i", 0.3, 0.6)] * 2


def test_it_begins_in_intersection_and_changes_at_the_end_of_a_bin_only() -> None:
    switch = Switch(SSDConfig(bin_size=2))
    schemes = []
    for matched in (False, False, True, True):
        schemes.append(switch.scheme)
        switch.observe(matched)
    assert schemes == [Scheme.INTERSECTION] * 2 + [Scheme.UNION] * 2
    assert switch.scheme is Scheme.INTERSECTION
