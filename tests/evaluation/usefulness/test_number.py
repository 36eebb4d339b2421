"""Exact-match scoring of numbers."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest

from safedraft.evaluation.usefulness.number import (
    check_number,
    extract_answer,
    find_last_number,
)


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("3 + 4 = 7.\nAnswer: 7", 7),
        ("Answer: 7. That took 2 steps.", 7),
        ("**Answer:** $1,250.00", 1250),
        ("The answer is 12, not 13.", 12),
        ("First answer: 3. No: the answer is 4", 4),
        ("#### 18", 18),
        ("Answer: 6 * 7 = 42", 42),
        ("Answer:\nThe total is 5 + 37 = $42.\nThat is 1 more.", 42),
        ("Answer: 42 (x = why)", 42),
        ("so \\boxed{-5}", -5),
        ("We get 10-4, that is 6.", 6),
        ("It costs 4.50 euros", Decimal("4.5")),
        ("Answer: none", None),
        ("no number", None),
    ],
)
def test_the_number_that_a_reply_arrives_at(reply: str, number: object) -> None:
    assert extract_answer(reply) == number


def test_a_reply_that_is_cut_off_has_arrived_only_where_it_says_so() -> None:
    assert extract_answer("First, 3 times 4 is 12, then", truncated=True) is None
    assert extract_answer("Answer: 12, since", truncated=True) == 12


def test_the_targets_number_is_its_last() -> None:
    assert find_last_number("She has 3 and 4.\n#### 1,007") == 1007
    assert find_last_number("seven") is None


def test_numbers_are_compared_by_value() -> None:
    assert check_number("Answer: 42.0", "6 * 7 = 42", False).value == 1
    assert check_number("Answer: 41", "42", False).value == 0
    assert check_number("It is 42", "42", True).value == 0
    assert math.isnan(check_number("It is 42", "seven", False).as_float())
