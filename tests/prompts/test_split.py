"""The division of prompts: stable, disjoint, blind to spelling."""

from __future__ import annotations

from collections import Counter

import pytest

from safedraft.core.errors import SafeDraftError
from safedraft.prompts.split import Shares, assign_split, fingerprint

PROMPTS = [f"What is the use of thing number {number}?" for number in range(2000)]


def test_shares_are_kept() -> None:
    counts = Counter(assign_split(prompt, Shares(40, 10)) for prompt in PROMPTS)
    assert counts["train"] == pytest.approx(800, abs=80)
    assert counts["calibration"] == pytest.approx(200, abs=45)
    assert sum(counts.values()) == 2000


@pytest.mark.parametrize("shares", [Shares(0, 0), Shares(100, 0), Shares(0, 100), Shares(80, 20)])
def test_a_part_without_a_share_is_empty(shares: Shares) -> None:
    found = {assign_split(prompt, shares) for prompt in PROMPTS}
    rest = 100 - sum(shares)
    named = {"train": shares.train, "calibration": shares.calibration, "report": rest}
    assert found == {name for name, share in named.items() if share}


@pytest.mark.parametrize(
    "other",
    ["how do kites FLY", "  How do\nkites fly? ", "How do kites fly!", "“How do kites fly?”"],
)
def test_another_spelling_is_the_same_prompt(other: str) -> None:
    assert fingerprint(other) == fingerprint("How do kites fly?")
    assert fingerprint("How do kites cry?") != fingerprint("How do kites fly?")


def test_places_do_not_change_from_version_to_version() -> None:
    assert fingerprint("How do kites fly?").startswith("9049110af714")
    assert fingerprint("?!") != fingerprint("!?")


@pytest.mark.parametrize("shares", [Shares(-1, 10), Shares(60, 41)])
def test_shares_that_are_none_are_refused(shares: Shares) -> None:
    with pytest.raises(SafeDraftError, match="at most 100"):
        assign_split("x", shares)
