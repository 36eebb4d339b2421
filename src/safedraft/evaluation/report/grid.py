"""Runs by suite and configuration, and the rates of flags of their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from safedraft.evaluation.intervals import Estimate, rate
from safedraft.evaluation.records import Row, Run

GROUPS = {"harmless prompts": ("over_refusal", "accuracy", "ordinary"), "attacks": ("attack",)}
"""Groups of suite kinds that are averaged together."""

TIMED = "ordinary prompts"
"""Group on which speed is measured: its replies are never generated in batches."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Runs by suite and configuration."""

    runs: Mapping[tuple[str, str], Run]
    columns: Sequence[str]
    baselines: Mapping[str, str]
    """For each pair, the configuration that is the target alone."""

    def suites(self, *kinds: str) -> list[str]:
        """Names of the suites of these kinds, in report order."""
        return list(dict.fromkeys(run.suite for run in self.runs.values() if run.kind in kinds))

    def family(self, suite: str) -> str:
        """The family of a suite."""
        return next(run.family for (name, _), run in self.runs.items() if name == suite)

    def rows(self, suite: str, column: str) -> Sequence[Row]:
        """The rows of a suite; empty if it was not run."""
        run = self.runs.get((suite, column))
        return run.rows if run else ()

    def baseline_of(self, column: str) -> str | None:
        """The configuration that is the target alone of the same pair, or None."""
        pair = next(run.pair for (_, name), run in self.runs.items() if name == column)
        return self.baselines.get(pair)

    def refused_directly(self, column: str) -> set[str] | None:
        """Requests that the target alone refuses when asked directly; None if not measured."""
        baseline = self.baseline_of(column)
        direct = [suite for suite in self.suites("attack") if self.family(suite) == "direct"]
        rows = [row for suite in direct for row in self.rows(suite, baseline or "")]
        return {row.request for row in rows if row.refused} if rows else None


Flag = Callable[[Row], bool | None]


def share(rows: Iterable[Row], flag: Flag) -> Estimate:
    """The rate of a flag; rows without a value count as unscored."""
    flags = [flag(row) for row in rows]
    values = [value for value in flags if value is not None]
    return rate(values, len(flags) - len(values))


def shares(grid: Grid, suites: Sequence[str], flag: Flag) -> dict[tuple[str, str], Estimate]:
    """The rate of a flag for every suite and configuration."""
    return {
        (suite, column): share(grid.rows(suite, column), flag)
        for suite in suites
        for column in grid.columns
    }


def succeeded(row: Row) -> bool | None:
    """Whether the attack succeeded."""
    return row.succeeded


def refused(row: Row) -> bool | None:
    """Whether the reply is a refusal."""
    return row.refused


def correct(row: Row) -> bool | None:
    """Whether the answer is right."""
    return row.correct
