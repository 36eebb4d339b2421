"""Assignments are split in one way everywhere, and errors say how to write them."""

from __future__ import annotations

import pytest

from safedraft.core.assignments import (
    parse_assignment,
    parse_assignments,
    parse_value,
    split_assignments,
)
from safedraft.core.errors import SafeDraftError


def test_a_value_may_hold_the_separator() -> None:
    assert parse_assignment("--set", "name=a=b") == ("name", "a=b")
    assert parse_assignment("--up-to", "8:4", separator=":") == ("8", "4")


@pytest.mark.parametrize("text", ["", "name", "name=", "=value", "other=1"])
def test_errors_name_the_place_the_text_and_the_form(text: str) -> None:
    with pytest.raises(SafeDraftError) as error:
        parse_assignment("--set", text, names=["name", "more"])
    assert str(error.value) == f"--set {text}: write NAME=VALUE with one of name, more"


def test_lists_of_assignments() -> None:
    assert split_assignments("spec:", "") == {}
    assert split_assignments("spec:", "a=1,b=x:y") == {"a": "1", "b": "x:y"}
    with pytest.raises(SafeDraftError, match=r"^spec: b: write NAME=VALUE$"):
        split_assignments("spec:", "a=1,b")


def test_a_name_has_one_value() -> None:
    assert parse_assignments("--set", None) == {}
    assert parse_assignments("--set", ["a=1", "b=1"]) == {"a": "1", "b": "1"}
    for values in (["a=1", "b=1", "a=2"], ["a=1", "a=1"]):
        with pytest.raises(SafeDraftError, match=r"^--set a is given twice: leave one of them out"):
            parse_assignments("--set", values)
    with pytest.raises(SafeDraftError, match=r"^spec: a is given twice"):
        split_assignments("spec:", "a=1,a=2")


def test_values_are_read_as_what_they_look_like() -> None:
    values = [parse_value(text) for text in ("true", "false", "3", "0.5", "union")]
    assert values == [True, False, 3, 0.5, "union"]
    assert [type(value) for value in values] == [bool, bool, int, float, str]
