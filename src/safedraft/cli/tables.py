"""Tables of a report in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from safedraft.evaluation.intervals import Estimate
    from safedraft.evaluation.report.tables import Section, Unit


def draw_section(section: Section) -> Table:
    """Draw the tables of a section as one; suites that follow one another are named once."""
    from rich.markup import escape
    from rich.table import Table

    drawn = Table(
        title=section.title, title_style="bold", title_justify="left", box=None, pad_edge=False
    )
    drawn.add_column("")
    drawn.add_column("")
    for table in section.tables:
        title = table.title if len(section.tables) > 1 else ""
        drawn.add_column(title, justify="right", header_style="")
    shown = ""
    for row, column, cells in section.lines:
        units = [table.unit for table in section.tables]
        values = [_format(cell, unit) for cell, unit in zip(cells, units, strict=True)]
        drawn.add_row(escape(row) if row != shown else "", escape(column), *values)
        shown = row
    return drawn


def _format(cell: Estimate, unit: Unit) -> str:
    """A value and its interval, as ``17% 3–56``."""
    from safedraft.evaluation.report.markdown import format_interval, format_value

    interval = format_interval(cell, unit).strip("[]").replace(", ", "–")
    return f"{format_value(cell.value, unit)} [dim]{interval}[/]" if interval else "–"
