"""Renders the figures as Markdown: only tables, no text of requests or replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safedraft.evaluation.report.findings import format_percent
from safedraft.evaluation.report.tables import Unit

if TYPE_CHECKING:
    from safedraft.evaluation.intervals import Estimate
    from safedraft.evaluation.report.tables import Figures, Section, Table

EMPTY = "–"
"""Cell of a value that was not measured."""


def render_markdown(figures: Figures) -> str:
    """Render the whole report."""
    parts = [
        "# SafeDraft: evaluation",
        " ".join([f"**{figures.headline}**", *figures.further_findings]),
        *(f"**Warning.** {_escape_cell(warning)}" for warning in figures.warnings),
        figures.conditions,
        EXPLANATION,
    ]
    for section in figures.sections:
        parts += [f"## {section.title}", section.note, render_section(section)]
    if figures.notes:
        parts += ["## Notes", "\n".join(f"- {_escape_cell(note)}" for note in figures.notes)]
    facts = "\n".join(f"- {name}: {value}" for name, value in figures.facts.items())
    return "\n\n".join([*parts, "## Measured with", facts]) + "\n"


EXPLANATION = (
    "Square brackets hold 95% intervals; n is the number of samples scored. Samples without a "
    "score are counted separately and are in no figure. A dash means that nothing was measured."
)
"""An explanation of the cells."""


def format_value(value: float | None, unit: Unit) -> str:
    """Format a number in its unit."""
    if value is None:
        return EMPTY
    return (
        format_percent(value) if unit == "share" else f"{value:.2f}{'×' if unit == 'ratio' else ''}"
    )


def format_interval(estimate: Estimate, unit: Unit) -> str:
    """Format an interval as ``[29, 58]``; empty if there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    if unit == "share":
        return f"[{estimate.low * 100:.0f}, {estimate.high * 100:.0f}]"
    return f"[{estimate.low:.2f}, {estimate.high:.2f}]"


def format_count(estimate: Estimate) -> str:
    """Format the number of samples as ``n = 20, 2 unscored``."""
    unscored = f", {estimate.unscored} unscored" if estimate.unscored else ""
    return f"n = {estimate.count}{unscored}" if estimate.count or unscored else ""


def render_section(section: Section) -> str:
    """Render the tables of a section as one: beside each other if there are several."""
    if len(section.tables) == 1:
        return _render_table(section.tables[0])
    units = [table.unit for table in section.tables]
    heads = ["", "", *(table.title for table in section.tables)]
    lines = [heads, ["---", "---", *["---:"] * len(section.tables)]]
    for row, column, cells in section.lines:
        values = [_format_cell(cell, unit) for cell, unit in zip(cells, units, strict=True)]
        lines.append([row, column, *values])
    return _join_lines(lines)


def _render_table(table: Table) -> str:
    lines = [["", *table.heads], ["---", *["---:"] * len(table.heads)]]
    for name, cells in table.lines:
        lines.append([name, *(_format_cell(cell, table.unit) for cell in cells)])
    return _join_lines(lines)


def _format_cell(cell: Estimate, unit: Unit) -> str:
    parts = format_value(cell.value, unit), format_interval(cell, unit), format_count(cell)
    return " ".join(filter(None, parts))


def _join_lines(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(map(_escape_cell, line))} |" for line in lines)


def _escape_cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
