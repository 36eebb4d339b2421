"""Summarizes the figures in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safedraft.evaluation.intervals import Estimate
from safedraft.evaluation.report.attacks import compute_trade_off
from safedraft.evaluation.report.grid import TIMED, Grid, refused, share
from safedraft.evaluation.report.tables import Point, Table

_TITLES = {
    "target_only": "the target alone",
    "ssd": "SSD",
    "risk": "SSD with the request's risk",
    "always_refuse": "refusing everything",
}
"""Names of configurations in sentences; others have the name of their column."""


def summarize(tables: Sequence[Table], grid: Grid) -> list[str]:
    """One sentence for each finding; the first is the report's headline."""
    by_name = {table.name: table for table in tables}
    comparison = choose_comparison(grid)
    if comparison is None:
        return [
            "There is nothing to compare: the logs must include target_only and another defense."
        ]
    alone, other = comparison
    sentences = [
        _describe_separation(compute_trade_off(grid, comparison), alone, other),
        _describe_attacks(by_name, grid.suites("attack"), alone, other),
        _describe_refusals(by_name.get("benign_refusal"), grid, alone, other),
        _describe_speed(by_name.get("speed"), alone, other),
    ]
    return [sentence for sentence in sentences if sentence] or [
        f"{other} and {alone} have no suite in common."
    ]


def choose_comparison(grid: Grid) -> tuple[str, str] | None:
    """The target alone and the defense to compare with it.

    That is SSD with the risk of the request, by which a pair with a probe decodes, or else SSD
    alone, or else another one that ran.
    """
    for pair, alone in grid.baselines.items():
        defenses = {name: run.defense for (_, name), run in grid.runs.items() if run.pair == pair}
        others = [column for column in grid.columns if column in defenses and column != alone]
        if others:
            return alone, min(others, key=lambda column: defenses[column] != "risk")
    return None


def _describe_separation(points: Sequence[Point], alone: str, other: str) -> str:
    """Describe how far a defense tells harm from harmlessness, over the attacks that both ran."""
    if len(points) < 2:
        return ""
    before, after = points
    title = _title(other)
    named = other if title == other else f"{title[0].upper()}{title[1:]} ({other})"
    return (
        f"{named} answers {format_percent(after.success.value)} of {after.success.count} attacks "
        f"and refuses {format_percent(after.harmless_refused.value)} of "
        f"{after.harmless_refused.count} harmless requests in the same attacks ({_title(alone)}: "
        f"{format_percent(before.success.value)} and "
        f"{format_percent(before.harmless_refused.value)}); it tells them apart by "
        f"{_format_points(after.separation)} ({_title(alone)}: "
        f"{_format_points(before.separation)}; answering or refusing everything: 0)."
    )


def _title(column: str) -> str:
    """Name a column in a sentence, with the name of its pair if the column has it."""
    pair, colon, name = column.rpartition(": ")
    return f"{pair}{colon}{_TITLES.get(name, name)}"


def _format_points(estimate: Estimate) -> str:
    assert estimate.value is not None
    points = f"{estimate.value * 100:.0f}"
    return f"{points} point{'s' * (points not in ('1', '-1'))}"


def _describe_attacks(
    tables: Mapping[str, Table], suites: Sequence[str], alone: str, other: str
) -> str:
    """Describe the suite of attacks that succeeds most often against the defense."""
    table = tables.get("attack_success")
    shared = [row for row in _shared_rows(table, alone, other) if row in suites]
    if table is None or not shared:
        return ""
    strongest = max(shared, key=lambda suite: table.cell(suite, other).value or 0.0)
    before, after = table.cell(strongest, alone), table.cell(strongest, other)
    rejected = tables["harmless_refused"].cell(strongest, other)
    return (
        f"The attack that succeeds most often against {_title(other)} is {strongest}: "
        f"{format_percent(after.value)} of {after.count} ({_title(alone)}: "
        f"{format_percent(before.value)}{_note_overlap(before, after)}), and of its "
        f"{rejected.count} harmless controls {format_percent(rejected.value)} are refused."
    )


def _describe_refusals(table: Table | None, grid: Grid, alone: str, other: str) -> str:
    """Describe refusals over the prompts of all harmless suites, whose sizes may differ."""
    shared = _shared_rows(table, alone, other)
    if not shared:
        return ""
    before, after = (
        share([row for suite in shared for row in grid.rows(suite, name)], refused)
        for name in (alone, other)
    )
    return (
        f"Of {after.count} harmless prompts that nobody attacked, {_title(alone)} refuses "
        f"{format_percent(before.value)} and {_title(other)} {format_percent(after.value)}"
        f"{_note_overlap(before, after)}."
    )


def _shared_rows(table: Table | None, *names: str) -> list[str]:
    """The rows of a table in which all of these configurations have values."""
    if table is None:
        return []
    return [row for row in table.rows if all(table.cell(row, name).count for name in names)]


def _describe_speed(table: Table | None, alone: str, other: str) -> str:
    speed = table.cell(TIMED, other) if table else None
    if speed is None or speed.value is None:
        return ""
    return (
        f"On {speed.count} ordinary prompts, {_title(other)} decodes at {speed.value:.2f} times "
        f"the speed of {_title(alone)}."
    )


def _note_overlap(one: Estimate, other: Estimate) -> str:
    return "; the 95% intervals overlap" if one.overlaps(other) else ""


def format_percent(value: float | None) -> str:
    """Format a share as a percentage."""
    return "–" if value is None else f"{value:.0%}"
