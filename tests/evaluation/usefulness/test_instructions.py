"""Instructions: every kind is kept by one reply and broken by another."""

from __future__ import annotations

import json
from typing import Any

import pytest

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.usefulness.instructions import (
    CHECKERS,
    check_instructions,
    find_broken,
)

CASES: list[tuple[str, Any, str, str]] = [  # name, argument, a reply that keeps it, one that breaks
    ("max_words", 3, "one two-part it's", "one two three four"),
    ("min_words", 3, "one two three", "one two"),
    ("sentences", 2, 'It rains 3.5 mm. "Really?"', "It rains. It pours. It stops."),
    ("max_sentences", 1, "It rains", "It rains. It pours!"),
    ("min_sentences", 2, "It rains. It pours!", "It rains and pours."),
    ("paragraphs", 2, "one\ntwo\n\nthree", "one\ntwo"),
    ("lines", 2, "one\n\ntwo", "one\ntwo\nthree"),
    ("bullets", 2, "Here:\n* one\n- two", "* one\n* two\n  - three"),
    ("numbered", 2, "1. one\n2) two", "1. one\n- two"),
    ("highlights", 2, "*one* and **two**", "**one** and 2 * 3"),
    ("placeholders", 2, "Dear [name], see [address].", "See [a](link) and [b]."),
    ("include", ["tea", "hot milk"], "Tea with hot milk.", "Steam and hot milk."),
    ("include_any", ["tea", "milk"], "Some milk.", "A steamer."),
    ("avoid", ["water"], "Waterfalls are fine.", "It has Water in it."),
    ("avoid", ["!"], "Well.", "Well!"),
    ("repeat", {"tea": 2}, "Tea, more tea.", "Tea and teams."),
    ("lowercase", True, "all of it, 3 times.", "Most of it."),
    ("uppercase", True, "ALL OF IT, 3 TIMES.", "MOST of it."),
    ("no_commas", True, "One and two.", "One, two."),
    ("no_digits", True, "Seven of them.", "7 of them."),
    ("question", True, "Do you like it?", "Do you? Yes."),
    ("quoted", True, '"All of it."', '"Part" of it.'),
    ("title", True, "<<Tea>>\nIt is hot.", "<Tea>\nIt is << >> hot."),
    ("postscript", True, "Yours.\nP.S. Write soon.", "The P.S. is missing."),
    ("json", True, '```json\n{"a": [1]}\n```', '{"a": 1} as JSON'),
    ("json_keys", ["a", "b"], '{"b": 1, "a": 2}', '{"a": 1}'),
    ("starts_with", "Well,", "well, it is.", "It is well, so."),
    ("ends_with", "That is all.", "It is hot. That is all.", "That is all. It is hot."),
    ("ends_with", "over and out", 'So: "Over and out."', "Over and out, captain"),
    ("one_of", ["yes", "no"], "Yes.", "Yes, it is."),
    ("language", "de", "Das ist der Tee, und er ist heiß.", "This is the tea."),
]


@pytest.mark.parametrize(("name", "argument", "kept", "broken"), CASES)
def test_kept_and_broken(name: str, argument: Any, kept: str, broken: str) -> None:
    assert find_broken(f"\n{kept}\n ", {name: argument}) == []
    assert find_broken(broken, {name: argument}) == [name]


def test_every_instruction_has_a_case() -> None:
    assert {name for name, *_ in CASES} == set(CHECKERS)


def score(reply: str, instructions: Any, truncated: bool = False) -> Any:
    return check_instructions(reply, json.dumps(instructions), truncated)


def test_all_instructions_have_to_be_kept() -> None:
    both = {"max_words": 3, "no_commas": True}
    assert score("one two", both).value == 1
    partly = score("one, two", both)
    assert partly.value == 0
    assert partly.explanation == "not kept: no_commas"
    assert partly.metadata == {"max_words": True, "no_commas": False}


@pytest.mark.parametrize("reply", ["", " \n", "I'm sorry but I can't assist with that."])
def test_a_reply_without_an_answer_keeps_nothing(reply: str) -> None:
    assert score(reply, {"no_commas": True, "max_words": 50}).value == 0


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "has to be a JSON object"),
        ("{}", "has to be a JSON object"),
        ("[1]", "has to be a JSON object"),
        ('{"words": 3}', "no instruction is called 'words'; there are max_words, "),
        ('{"max_words": "3"}', "max_words needs int, not '3'"),
        ('{"max_words": true}', "max_words needs int, not True"),
        ('{"json": false}', "json needs true, not False"),
        ('{"include": "tea"}', "include needs list, not 'tea'"),
    ],
)
def test_malformed_instructions_are_errors(target: str, message: str) -> None:
    with pytest.raises(SafeDraftError, match=message):
        check_instructions("reply", target, False)
