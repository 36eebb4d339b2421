"""What was read, by suite and configuration, and the rates of what is true of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from safedraft.evaluation.intervals import Estimate, rate
from safedraft.evaluation.report.read import Row, Run

GROUPS = {"harmless prompts": ("over_refusal", "accuracy", "ordinary"), "attacks": ("attack",)}
"""Kinds of suites that are told apart where replies are counted in passes."""

TIMED = "ordinary prompts"
"""Where the target's replies are made one by one, as all others are."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Runs by suite and configuration."""

    runs: Mapping[tuple[str, str], Run]
    columns: Sequence[str]
    baselines: Mapping[str, str]
    """The configuration of each pair that is the target alone."""

    def suites(self, *kinds: str) -> list[str]:
        """Names of the suites of these kinds, in order."""
        return list(dict.fromkeys(run.suite for run in self.runs.values() if run.kind in kinds))

    def family(self, suite: str) -> str:
        """Of attack."""
        return next(run.family for (name, _), run in self.runs.items() if name == suite)

    def rows(self, suite: str, column: str) -> Sequence[Row]:
        """What came of a suite; nothing where it was not run."""
        run = self.runs.get((suite, column))
        return run.rows if run else ()

    def baseline_of(self, column: str) -> str | None:
        """The target alone of the same pair."""
        pair = next(run.pair for (_, name), run in self.runs.items() if name == column)
        return self.baselines.get(pair)

    def refused_directly(self, column: str) -> set[str] | None:
        """Requests that the target alone refuses when asked directly; None where not measured."""
        baseline = self.baseline_of(column)
        direct = [suite for suite in self.suites("attack") if self.family(suite) == "direct"]
        rows = [row for suite in direct for row in self.rows(suite, baseline or "")]
        return {row.request for row in rows if row.refused} if rows else None


Flag = Callable[[Row], bool | None]


def share(rows: Iterable[Row], flag: Flag) -> Estimate:
    """The rate of a flag; rows where it is not known are counted apart."""
    flags = [flag(row) for row in rows]
    known = [value for value in flags if value is not None]
    return rate(known, len(flags) - len(known))


def shares(grid: Grid, suites: Sequence[str], flag: Flag) -> dict[tuple[str, str], Estimate]:
    """The rate of a flag for every suite and configuration."""
    return {
        (suite, column): share(grid.rows(suite, column), flag)
        for suite in suites
        for column in grid.columns
    }


def succeeded(row: Row) -> bool | None:
    """Whether the attack got what it was after."""
    return row.succeeded


def refused(row: Row) -> bool | None:
    """Whether the answer was withheld."""
    return row.refused


def correct(row: Row) -> bool | None:
    """Whether the answer is right."""
    return row.correct
