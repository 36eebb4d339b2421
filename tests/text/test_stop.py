"""Stop strings: the earliest start counts, and settled text is as long as it can be."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from safedraft.text.stop import find_stop, settled_length

TEXTS = st.text(alphabet="ab", max_size=8)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3)


@pytest.mark.parametrize(
    ("text", "stops", "start"),
    [
        ("abc", [], None),
        ("", ["a"], None),
        ("abc", ["x", "ca"], None),
        ("abc", ["bc"], 1),
        ("abcabc", ["bc"], 1),
        ("abcd", ["cd", "bcd"], 1),
        ("abcd", ["abcd", "d"], 0),
    ],
)
def test_the_earliest_start_counts(text: str, stops: list[str], start: int | None) -> None:
    assert find_stop(text, stops) == start


@pytest.mark.parametrize(
    ("text", "stops", "length"),
    [
        ("abc", [], 3),
        ("", ["ab"], 0),
        ("abc", ["xy"], 3),
        ("abc", ["cd"], 2),
        ("abc", ["cd", "bcd"], 1),
        ("aab", ["aabaa"], 0),
        ("aabaa", ["aabab"], 3),
    ],
)
def test_an_end_that_begins_a_stop_string_is_unsettled(
    text: str, stops: list[str], length: int
) -> None:
    assert settled_length(text, stops) == length


@given(text=TEXTS, stops=STOPS, following=TEXTS)
def test_settled_text_is_never_cut(text: str, stops: list[str], following: str) -> None:
    assume(find_stop(text, stops) is None)
    start = find_stop(text + following, stops)
    assert start is None or start >= settled_length(text, stops)


@given(text=TEXTS, stops=STOPS)
def test_unsettled_text_can_be_cut(text: str, stops: list[str]) -> None:
    assume(find_stop(text, stops) is None)
    settled = settled_length(text, stops)
    endings = [stop[length:] for stop in stops for length in range(len(stop))]
    starts = [find_stop(text + ending, stops) for ending in endings]
    assert settled == len(text) or settled in starts
