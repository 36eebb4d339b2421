"""The cost of a defense: speed, tokens per pass, signals of the rule, match ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from safedraft.evaluation.intervals import Estimate, mean, median
from safedraft.evaluation.records import Row
from safedraft.evaluation.report.grid import GROUPS, TIMED, Grid
from safedraft.evaluation.report.tables import Series, Table, Unit


def compute_speed(grid: Grid) -> Table:
    """Tokens per second as a multiple of those of the target alone, request by request."""

    def ratios(suite: str, column: str) -> list[float]:
        baseline = grid.baseline_of(column)
        if machines_differ(grid, suite, column):
            return []
        baseline_speeds = {
            row.key: _tokens_per_second(row) for row in grid.rows(suite, baseline or "")
        }
        speeds = (
            (_tokens_per_second(row), baseline_speeds.get(row.key))
            for row in grid.rows(suite, column)
        )
        return [own / other for own, other in speeds if own and other]

    return _by_group(
        grid, {TIMED: ("ordinary",)}, ratios, median,
        "speed", "Speed, relative to the target alone", "ratio",
        "Median over ordinary requests of tokens per second, each divided by the target alone's "
        "on the same request. Runs are consecutive: drift of the machine is included.",
    )  # fmt: skip


def machines_differ(grid: Grid, suite: str, column: str) -> bool:
    """Whether a suite ran on another machine, or with other threads, than the target alone."""
    baseline = grid.baseline_of(column) or ""
    own, alone = (grid.runs.get((suite, name)) for name in (column, baseline))
    return bool(own and alone and own.machine != alone.machine)


def compute_tokens_per_pass(grid: Grid) -> Table:
    """Tokens per forward pass of the target."""

    def per_pass(suite: str, column: str) -> list[float]:
        values = (row.statistics.get("tokens_per_target_pass") for row in grid.rows(suite, column))
        return [float(value) for value in values if value]

    return _by_group(
        grid, GROUPS, per_pass, mean, "tokens_per_pass", "Tokens per pass of the target", "number",
        "Mean over the replies; 1 without a draft. More tokens per pass make decoding faster.",
    )  # fmt: skip


def compute_signals(grid: Grid) -> Table:
    """Share of a reply's tokens at which its rule raised its signal."""

    def signals(suite: str, column: str) -> list[float]:
        figures = [row.statistics for row in grid.rows(suite, column)]
        return [
            one["signals"] / one["tokens"]
            for one in figures
            if one.get("tokens") and one.get("signals") is not None
        ]

    return _by_group(
        grid, GROUPS, signals, mean, "signals", "Signals of the rule", "share",
        "Mean share of a reply's tokens at which the rule raised its signal: positions that EASD "
        "penalized. A dash where a rule has no signal.",
    )  # fmt: skip


def _by_group(
    grid: Grid,
    groups: Mapping[str, Sequence[str]],
    read_values: Callable[[str, str], list[float]],
    estimate: Callable[[Sequence[float], int], Estimate],
    name: str,
    title: str,
    unit: Unit,
    note: str,
) -> Table:
    cells = {}
    for group, kinds in groups.items():
        for column in grid.columns:
            suites = grid.suites(*kinds)
            values = [value for suite in suites for value in read_values(suite, column)]
            replies = sum(len(grid.rows(suite, column)) for suite in suites)
            cells[group, column] = estimate(values, replies - len(values) if values else 0)
    rows = [group for group in groups if any(cells[group, name].count for name in grid.columns)]
    return Table(name, title, note, unit, rows, grid.columns, cells)


def _tokens_per_second(row: Row) -> float:
    return float(row.statistics.get("tokens_per_second") or 0.0)


MIN_REPLIES = 3
"""Minimum number of replies for the mean of a bin."""


def compute_match_ratios(grid: Grid) -> dict[str, list[Series]]:
    """Mean match ratio of the n-th bin, over the replies that reach it, by group."""
    return {
        group: series
        for group, kinds in GROUPS.items()
        if (
            series := [
                s for c in grid.columns if (s := _average_bins(grid, grid.suites(*kinds), c))
            ]
        )
    }


def _average_bins(grid: Grid, suites: Sequence[str], column: str) -> Series | None:
    replies = [
        list(row.statistics.get("match_ratios") or ())
        for suite in suites
        for row in grid.rows(suite, column)
        if row.statistics.get("draft_passes")
    ]
    bins = max(map(len, replies), default=0)
    values = [[reply[index] for reply in replies if len(reply) > index] for index in range(bins)]
    means = [mean(ratios) for ratios in values if len(ratios) >= MIN_REPLIES]
    return Series(column, range(1, len(means) + 1), means) if means else None
