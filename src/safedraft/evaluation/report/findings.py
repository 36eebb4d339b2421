"""What the figures show, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from safedraft.evaluation.intervals import Estimate
from safedraft.evaluation.report.grid import TIMED, Grid, refused, share
from safedraft.evaluation.report.tables import Table


def findings(tables: Sequence[Table], grid: Grid) -> list[str]:
    """What the data shows, a sentence each, the first one first."""
    by_name = {table.name: table for table in tables}
    compared = compared_configurations(grid)
    if compared is None:
        return ["There is nothing to compare: it takes logs of target_only and of another defense."]
    alone, other = compared
    found = [
        _on_attacks(by_name.get("attack_success"), alone, other),
        _on_harmless(by_name.get("benign_refusal"), grid, alone, other),
        _on_speed(by_name.get("speed"), alone, other),
    ]
    return [part for part in found if part] or [f"{other} and {alone} have no suite in common."]


def compared_configurations(grid: Grid) -> tuple[str, str] | None:
    """The target alone, and SSD or whatever else was run."""
    for pair, alone in grid.baselines.items():
        others = [
            column
            for column in grid.columns
            if column != alone
            and any(run.pair == pair for (_, name), run in grid.runs.items() if name == column)
        ]
        if others:
            return alone, others[0]
    return None


def _on_attacks(table: Table | None, alone: str, other: str) -> str:
    """Where the target alone is weakest."""
    shared = _measured(table, alone, other)
    if table is None or not shared:
        return ""
    weakest = max(shared, key=lambda suite: table.cell(suite, alone).value or 0.0)
    before, after = table.cell(weakest, alone), table.cell(weakest, other)
    return (
        f"{alone} gives in to {percent(before.value)} of the attacks where it is weakest "
        f"({weakest}), {other} to {percent(after.value)}{_doubt(before, after)}."
    )


def _on_harmless(table: Table | None, grid: Grid, alone: str, other: str) -> str:
    """Of all prompts together: one suite may have many more than another."""
    shared = _measured(table, alone, other)
    if not shared:
        return ""
    before, after = (
        share([row for suite in shared for row in grid.rows(suite, name)], refused)
        for name in (alone, other)
    )
    return (
        f"Of the harmless prompts, {alone} refuses {percent(before.value)} and {other} "
        f"{percent(after.value)}{_doubt(before, after)}."
    )


def _measured(table: Table | None, *names: str) -> list[str]:
    """The rows that all of these configurations have figures in."""
    if table is None:
        return []
    return [row for row in table.rows if all(table.cell(row, name).count for name in names)]


def _on_speed(table: Table | None, alone: str, other: str) -> str:
    found = table.cell(TIMED, other) if table else None
    if found is None or found.value is None:
        return ""
    return f"On ordinary ones, {other} decodes at {found.value:.2f} times the speed of {alone}."


def _doubt(one: Estimate, other: Estimate) -> str:
    return "" if one.apart_from(other) else " (the 95% intervals overlap)"


def percent(value: float | None) -> str:
    """A share as people read it."""
    return "–" if value is None else f"{value:.0%}"
