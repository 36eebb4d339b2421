"""Usefulness lost to a defense: refusals of harmless requests, and tasks done worse."""

from __future__ import annotations

from safedraft.evaluation.intervals import Estimate, mcnemar, paired_difference
from safedraft.evaluation.report.attacks import (
    Measure,
    Part,
    is_baseline,
    measure,
    newly_refused,
    split_by_language,
)
from safedraft.evaluation.report.grid import Grid, correct, refused, share
from safedraft.evaluation.report.tables import Section, Table


def compare_harmless(grid: Grid) -> Section:
    """Refusals of harmless prompts that nobody attacked."""
    parts = split_by_language(grid, grid.suites("over_refusal", "ordinary"))
    measures: list[tuple[str, str, Measure]] = [
        ("benign_refusal", "refused", lambda p, c: share(p.attacks(c), refused)),
        ("newly_refused_alone", "newly refused", lambda p, c: newly_refused(p, p.attacks(c), c)),
    ]
    return Section(
        "Refusal of harmless prompts",
        "Share of harmless prompts that are refused, and of those among them that the target "
        "alone answers. Lower is more useful.",
        measure(grid, parts, measures),
    )


def compare_accuracy(grid: Grid) -> Section:
    """Right answers, and the difference to the target alone on the same tasks."""
    suites = grid.suites("accuracy")
    parts = [Part(grid, suite) for suite in suites]
    right, difference = measure(
        grid,
        parts,
        [
            ("accuracy", "right", lambda p, c: share(p.attacks(c), correct)),
            ("accuracy_difference", "less the target's", _paired_difference),
        ],
    )
    cells = {(part.name, c): _test(part, c) for part in parts for c in grid.columns}
    test = Table("accuracy_p", "p", "", "number", suites, grid.columns, cells)
    return Section(
        "Task accuracy",
        "Share of right answers; its difference to that of the target alone on the same tasks, "
        "paired; and the p-value of McNemar's exact test of that difference.",
        [right, difference, test],
    )


def _pair_answers(part: Part, column: str) -> tuple[list[bool], list[bool]]:
    """Whether the defense was right, and the target alone, for tasks on which both have a score."""
    theirs = {row.key: row.correct for row in part.attacks(part.grid.baseline_of(column) or "")}
    pairs = [(row.correct, theirs.get(row.key)) for row in part.attacks(column)]
    scored = [(own, other) for own, other in pairs if own is not None and other is not None]
    return [own for own, _ in scored], [other for _, other in scored]


def _paired_difference(part: Part, column: str) -> Estimate:
    return (
        Estimate() if is_baseline(part, column) else paired_difference(*_pair_answers(part, column))
    )


def _test(part: Part, column: str) -> Estimate:
    ours, theirs = _pair_answers(part, column)
    if is_baseline(part, column) or not ours:
        return Estimate()
    return Estimate(mcnemar(ours, theirs), count=len(ours))
