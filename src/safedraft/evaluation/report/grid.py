"""Runs by suite and configuration, and the rates of flags of their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from safedraft.evaluation.intervals import Estimate, mean, rate
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
        """The rows of a suite without its controls; empty if it was not run."""
        return [row for row in self.all_rows(suite, column) if not row.control]

    def controls(self, suite: str, column: str) -> Sequence[Row]:
        """The harmless requests that were put through the attack of a suite."""
        return [row for row in self.all_rows(suite, column) if row.control]

    def all_rows(self, suite: str, column: str) -> Sequence[Row]:
        """The rows of a suite and of its controls."""
        run = self.runs.get((suite, column))
        return run.rows if run else ()

    def reference(self, suite: str, column: str) -> Mapping[str, Row]:
        """The greedy replies of the target alone to the same suite, by the id of the request."""
        run = self.runs.get((suite, self.baseline_of(column) or ""))
        return {row.id: row for row in run.rows} if run and run.temperature == 0 else {}

    def languages(self, suite: str) -> list[str]:
        """The languages of a suite's requests."""
        runs = [run for (name, _), run in self.runs.items() if name == suite]
        return sorted({row.language for run in runs for row in run.rows})

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


def share(rows: Sequence[Row], flag: Flag) -> Estimate:
    """The rate of a flag; rows without a value count as unscored.

    Several replies to a request are not independent: the estimate is then the mean over the
    requests of the rate among their replies, and its count is the number of requests.
    """
    by_request, unscored = _group_flags(rows, flag)
    if all(row.reply == 1 for row in rows):
        return rate([value for values in by_request for value in values], unscored)
    return mean([sum(values) / len(values) for values in by_request], unscored)


def any_reply(rows: Sequence[Row], flag: Flag) -> Estimate:
    """The share of requests for which a flag is true of at least one of several replies."""
    by_request, unscored = _group_flags(rows, flag)
    return rate([any(values) for values in by_request], unscored)


def every_reply(rows: Sequence[Row], flag: Flag) -> Estimate:
    """The share of requests for which a flag is true of all of several replies."""
    by_request, unscored = _group_flags(rows, flag)
    return rate([all(values) for values in by_request], unscored)


def _group_flags(rows: Sequence[Row], flag: Flag) -> tuple[list[list[bool]], int]:
    """The values of a flag by request, and the number of rows without one."""
    by_request: dict[str, list[bool]] = {}
    for row in rows:
        if (value := flag(row)) is not None:
            by_request.setdefault(row.id, []).append(value)
    return list(by_request.values()), len(rows) - sum(map(len, by_request.values()))


def succeeded(row: Row) -> bool | None:
    """Whether the attack succeeded."""
    return row.succeeded


def refused(row: Row) -> bool | None:
    """Whether the reply is a refusal."""
    return row.refused


def answered(row: Row) -> bool | None:
    """Whether the reply does what was asked."""
    return row.complied


def correct(row: Row) -> bool | None:
    """Whether the answer is right."""
    return row.correct
