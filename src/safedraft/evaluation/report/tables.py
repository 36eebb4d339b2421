"""What a report holds: tables of estimates, curves, and single requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from safedraft.evaluation.intervals import Estimate
from safedraft.evaluation.report.read import Row

Unit = Literal["share", "ratio", "number"]


ACROSS = 6
"""Configurations that stand side by side in a table; more stand below one another."""


@dataclass(frozen=True, slots=True)
class Table:
    """One kind of figure, by suite (or group of suites) and configuration."""

    name: str
    title: str
    note: str
    unit: Unit
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[str, str], Estimate]

    def cell(self, row: str, column: str) -> Estimate:
        """An estimate of nothing where nothing was run."""
        return self.cells.get((row, column), Estimate())

    @property
    def heads(self) -> Sequence[str]:
        """What stands above the columns as they are shown: configurations, unless they are many."""
        return self.columns if len(self.columns) <= ACROSS else self.rows

    @property
    def lines(self) -> list[tuple[str, list[Estimate]]]:
        """The table as it is shown, line by line, each with its name."""
        if len(self.columns) <= ACROSS:
            return [(row, [self.cell(row, name) for name in self.columns]) for row in self.rows]
        return [(name, [self.cell(row, name) for row in self.rows]) for name in self.columns]


@dataclass(frozen=True, slots=True)
class Series:
    """Estimates along a number: tokens prefilled, or bins of a reply."""

    name: str
    at: Sequence[float]
    values: Sequence[Estimate]


@dataclass(frozen=True, slots=True)
class Point:
    """A configuration between safety and usefulness."""

    name: str
    success: Estimate
    """Of all attacks, each suite weighing the same."""
    usefulness: Estimate
    """Share of harmless prompts that are answered, each suite weighing the same."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request through every configuration."""

    suite: str
    attack: bool
    request: str
    category: str
    prefill: str
    replies: Mapping[str, Row]


@dataclass(frozen=True, slots=True)
class Figures:
    """All there is to show."""

    headline: str
    """What the data shows, in a sentence."""
    besides: Sequence[str]
    """What else it shows."""
    columns: Sequence[str]
    baseline: str | None
    tables: Sequence[Table]
    by_prefill: Sequence[Series]
    trade_off: Sequence[Point]
    match_ratios: Mapping[str, Sequence[Series]]
    outcomes: Sequence[Outcome]
    notes: Sequence[str]
    facts: Mapping[str, str] = field(default_factory=dict)

    def table(self, name: str) -> Table:
        """By its name."""
        return next(table for table in self.tables if table.name == name)

    def to_dict(self) -> dict[str, Any]:
        """The figures, without a word of what was asked or said; ready for JSON."""
        return {
            "format": 1,
            "headline": self.headline,
            "besides": list(self.besides),
            "configurations": list(self.columns),
            "baseline": self.baseline,
            "figures": [
                {"figure": table.name, "unit": table.unit, "suite": row, "configuration": column}
                | table.cell(row, column).to_dict()
                for table in self.tables
                for row in table.rows
                for column in table.columns
            ],
            "attack_success_by_prefill": [_series(series) for series in self.by_prefill],
            "safety_and_usefulness": [
                {
                    "configuration": point.name,
                    "attack_success": point.success.to_dict(),
                    "usefulness": point.usefulness.to_dict(),
                }
                for point in self.trade_off
            ],
            "match_ratio_by_bin": {
                kind: [_series(series) for series in found]
                for kind, found in self.match_ratios.items()
            },
            "notes": list(self.notes),
            "facts": dict(self.facts),
        }


def _series(series: Series) -> dict[str, Any]:
    values = [
        {"at": at} | value.to_dict() for at, value in zip(series.at, series.values, strict=True)
    ]
    return {"configuration": series.name, "values": values}
