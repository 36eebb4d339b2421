"""The figures as Markdown: tables alone, without a word of what was asked or said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safedraft.evaluation.report.findings import percent
from safedraft.evaluation.report.tables import Unit

if TYPE_CHECKING:
    from safedraft.evaluation.intervals import Estimate
    from safedraft.evaluation.report.tables import Figures, Table

EMPTY = "–"
"""What stands where nothing was measured."""


def markdown(figures: Figures) -> str:
    """The whole report."""
    parts = [
        "# SafeDraft: evaluation",
        " ".join([f"**{figures.headline}**", *figures.besides]),
        EXPLANATION,
    ]
    for table in figures.tables:
        parts += [f"## {table.title}", table.note, _table(table)]
    if figures.notes:
        parts += ["## Notes", "\n".join(f"- {_cell(note)}" for note in figures.notes)]
    facts = "\n".join(f"- {name}: {value}" for name, value in figures.facts.items())
    return "\n\n".join([*parts, "## What it was measured with", facts]) + "\n"


EXPLANATION = (
    "Square brackets hold 95% intervals; n is the number of samples scored. Samples without a "
    "score are counted apart and are part of no figure. A dash stands where nothing was measured."
)
"""How to read a cell."""


def written(value: float | None, unit: Unit) -> str:
    """A number as people read it."""
    if value is None:
        return EMPTY
    return percent(value) if unit == "share" else f"{value:.2f}{'×' if unit == 'ratio' else ''}"


def interval(estimate: Estimate, unit: Unit) -> str:
    """``[29, 58]``; empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    if unit == "share":
        return f"[{estimate.low * 100:.0f}, {estimate.high * 100:.0f}]"
    return f"[{estimate.low:.2f}, {estimate.high:.2f}]"


def counted(estimate: Estimate) -> str:
    """``n = 20, 2 unscored``."""
    unscored = f", {estimate.unscored} unscored" if estimate.unscored else ""
    return f"n = {estimate.count}{unscored}" if estimate.count or unscored else ""


def _table(table: Table) -> str:
    lines = [["", *table.heads], ["---", *["---:"] * len(table.heads)]]
    for name, cells in table.lines:
        parts = [
            (written(cell.value, table.unit), interval(cell, table.unit), counted(cell))
            for cell in cells
        ]
        lines.append([name, *(" ".join(filter(None, part)) for part in parts)])
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
