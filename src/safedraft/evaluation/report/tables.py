"""The content of a report: tables of estimates, curves, and single requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from safedraft.evaluation.intervals import Estimate
from safedraft.evaluation.records import Row

Unit = Literal["share", "ratio", "number"]


MAX_COLUMNS = 6
"""A table with more configurations than this is transposed: each gets a row."""


@dataclass(frozen=True, slots=True)
class Table:
    """One kind of value, by suite (or group of suites) and configuration."""

    name: str
    title: str
    note: str
    unit: Unit
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[str, str], Estimate]

    def cell(self, row: str, column: str) -> Estimate:
        """The estimate in a cell; an empty one if nothing was run."""
        return self.cells.get((row, column), Estimate())

    @property
    def heads(self) -> Sequence[str]:
        """Headings of the columns as shown: configurations, or suites in a transposed table."""
        return self.columns if len(self.columns) <= MAX_COLUMNS else self.rows

    @property
    def lines(self) -> list[tuple[str, list[Estimate]]]:
        """The lines of the table as shown, each with its name."""
        if len(self.columns) <= MAX_COLUMNS:
            return [(row, [self.cell(row, name) for name in self.columns]) for row in self.rows]
        return [(name, [self.cell(row, name) for row in self.rows]) for name in self.columns]


@dataclass(frozen=True, slots=True)
class Section:
    """Tables that are shown beside each other, with the same rows and columns."""

    title: str
    note: str
    tables: Sequence[Table]

    @property
    def lines(self) -> list[tuple[str, str, list[Estimate]]]:
        """Suite, configuration and the estimate of each table; lines without any are left out."""
        first = self.tables[0]
        lines = [
            (row, column, [table.cell(row, column) for table in self.tables])
            for row in first.rows
            for column in first.columns
        ]
        return [line for line in lines if any(cell.count or cell.unscored for cell in line[2])]


@dataclass(frozen=True, slots=True)
class Series:
    """Estimates along an axis: number of prefilled tokens, or bin of a reply."""

    name: str
    at: Sequence[float]
    values: Sequence[Estimate]


@dataclass(frozen=True, slots=True)
class Point:
    """A configuration in the plot of safety and usefulness."""

    name: str
    success: Estimate
    """Attack success over all suites of attacks, with equal weights."""
    harmless_refused: Estimate
    """Share of the controls of the same suites that are refused, with equal weights."""
    separation: Estimate
    """Share of controls answered less attack success: 0 if harm makes no difference, and at most
    1. Refusing everything gives 0, and so does answering everything."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request with the reply of every configuration."""

    suite: str
    attack: bool
    control: bool
    request: str
    category: str
    prefill: str
    replies: Mapping[str, Row]


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that a report shows."""

    headline: str
    """The main finding, in a sentence."""
    conditions: str
    """Judge, length, temperature, languages and numbers, without which no finding is shown."""
    further_findings: Sequence[str]
    """The other findings, a sentence each."""
    warnings: Sequence[str]
    """Configurations that may be less safe than expected, with the reasons."""
    columns: Sequence[str]
    baseline: str | None
    sections: Sequence[Section]
    by_prefill: Mapping[str, Sequence[Series]]
    trade_off: Sequence[Point]
    match_ratios: Mapping[str, Sequence[Series]]
    outcomes: Sequence[Outcome]
    notes: Sequence[str]
    facts: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """Ids of the requests that a configuration failed on, by suite: attacks that succeeded and
    controls that were refused. An id holds a fingerprint of the request, and no text."""

    @property
    def tables(self) -> list[Table]:
        """The tables of all sections."""
        return [table for section in self.sections for table in section.tables]

    def table(self, name: str) -> Table:
        """The table of that name."""
        return next(table for table in self.tables if table.name == name)

    def to_dict(self) -> dict[str, Any]:
        """The figures for JSON, without the text of requests or replies."""
        return {
            "format": 2,
            "headline": self.headline,
            "conditions": self.conditions,
            "further_findings": list(self.further_findings),
            "warnings": list(self.warnings),
            "configurations": list(self.columns),
            "baseline": self.baseline,
            "figures": [
                {"figure": table.name, "unit": table.unit, "suite": row, "configuration": column}
                | table.cell(row, column).to_dict()
                for table in self.tables
                for row in table.rows
                for column in table.columns
            ],
            "by_prefill": {
                measure: [_series_to_dict(series) for series in curves]
                for measure, curves in self.by_prefill.items()
            },
            "attacks_against_controls": [
                {
                    "configuration": point.name,
                    "attack_success": point.success.to_dict(),
                    "harmless_refused": point.harmless_refused.to_dict(),
                    "separation": point.separation.to_dict(),
                }
                for point in self.trade_off
            ],
            "match_ratio_by_bin": {
                group: [_series_to_dict(series) for series in curves]
                for group, curves in self.match_ratios.items()
            },
            "failures": {suite: dict(ids) for suite, ids in self.failures.items()},
            "notes": list(self.notes),
            "facts": dict(self.facts),
        }


def _series_to_dict(series: Series) -> dict[str, Any]:
    values = [
        {"at": at} | value.to_dict() for at, value in zip(series.at, series.values, strict=True)
    ]
    return {"configuration": series.name, "values": values}
