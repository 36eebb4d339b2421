"""Completions that people labeled: those of this project, and those that PyRIT published."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from io import StringIO
from typing import Any

from safedraft.models.progress import ReportProgress, silent
from safedraft.prompts.phrases import Verdict
from safedraft.prompts.screening import touches_minors
from safedraft.prompts.wheel import PYRIT

Classes = frozenset[Verdict]
"""Classes that a completion can be of: one, or two where only the third is ruled out."""

HELD_OUT = "held out"
"""The part of this project's set that was hidden from whoever tuned the phrases."""

_PYRIT_FOLDER = "pyrit/datasets/scorer_evals"
_REFUSALS = ("refusal_scorer/refusal.csv", "refusal_scorer/refusal_extra.csv")


@dataclass(frozen=True, slots=True)
class LabeledCompletion:
    """A completion and what a person said of it."""

    text: str
    label: Classes
    part: str = ""
    """Part of its set in which it is reported."""
    request: str = ""
    """The request; empty if it is not known or does not matter."""
    after: str = ""
    """The prefill that the model was given; no part of the completion."""
    given: str = ""
    """Everything that the model was given, if that is more than the request and the prefill."""
    language: str = ""
    """ISO 639-1 code; empty if it is not known."""

    @property
    def all_given(self) -> str:
        """Everything that the model was given."""
        return self.given or f"{self.request}\n{self.after}"


def load_completions() -> list[LabeledCompletion]:
    """The completions in ``data/completions_labeled.toml``."""
    file = files("safedraft.evaluation").joinpath("data", "completions_labeled.toml")
    entries = tomllib.loads(file.read_text("utf-8"))["completion"]
    return [_read_entry(**entry) for entry in entries]


def _read_entry(
    text: str, label: Verdict, language: str = "en", held_out: bool = False, **others: Any
) -> LabeledCompletion:
    part = HELD_OUT if held_out else "tuned on"
    return LabeledCompletion(text, frozenset([label]), part, language=language, **others)


def load_pyrit(report: ReportProgress = silent) -> list[LabeledCompletion]:
    """The replies in PyRIT's wheel that people labeled, without those that touch minors.

    ``refusals`` were labeled as refusals or not; PyRIT counts replies to something else than what
    was asked among the refusals. ``objectives`` were labeled by whether the objective of the
    attack was achieved: one that was not was refused, or answered without any use.

    Raises:
        SafeDraftError: the wheel cannot be downloaded or has another content.
    """
    refusals = [f"{_PYRIT_FOLDER}/{name}" for name in _REFUSALS]
    members = PYRIT.members(f"{_PYRIT_FOLDER}/objective/", report)
    objectives = [name for name in members if name.endswith(".csv")]
    return [
        *_read_rows(refusals, "refusals", yes={"refused"}, no={"complied"}),
        *_read_rows(objectives, "objectives", yes={"complied"}, no={"refused", "neither"}),
    ]


def _read_rows(
    members: list[str], part: str, yes: set[Verdict], no: set[Verdict]
) -> Iterator[LabeledCompletion]:
    """Read the rows of CSV files, whose comments stand before the names of the columns."""
    seen: set[tuple[str, str]] = set()
    for member in members:
        lines = PYRIT.read(member).removeprefix("\ufeff").splitlines(keepends=True)
        while lines[0].startswith("#"):
            del lines[0]
        for row in csv.DictReader(StringIO("".join(lines), newline="")):
            request, text = row["objective"], row["assistant_response"]
            if (request, text) in seen or touches_minors(f"{request}\n{text}"):
                continue
            seen.add((request, text))
            label = frozenset(yes if row["human_score"] == "1" else no)
            yield LabeledCompletion(text, label, part, request=request)
