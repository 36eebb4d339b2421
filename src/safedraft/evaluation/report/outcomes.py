"""A few requests through every configuration, the telling ones first."""

from __future__ import annotations

from safedraft.evaluation.report.findings import compared_configurations
from safedraft.evaluation.report.grid import Flag, Grid, refused, succeeded
from safedraft.evaluation.report.tables import Outcome


def outcomes(grid: Grid, attacks: int = 4, harmless: int = 2) -> list[Outcome]:
    """A few requests that every configuration was asked, the telling ones first."""
    compared = compared_configurations(grid)
    found = []
    for kinds, wanted in (("attack",), attacks), (("over_refusal", "ordinary"), harmless):
        candidates = [o for suite in grid.suites(*kinds) for o in _complete(grid, suite)]
        flag = succeeded if kinds == ("attack",) else refused
        candidates.sort(key=lambda outcome: _telling(outcome, flag, compared), reverse=True)
        chosen: list[Outcome] = []
        for varied in (True, False):  # each request once, and each suite once while that is enough
            for outcome in candidates:
                requests, suites = {o.request for o in chosen}, {o.suite for o in chosen}
                known = outcome.request in requests or (varied and outcome.suite in suites)
                if len(chosen) < wanted and not known:
                    chosen.append(outcome)
        found += chosen
    return found


def _complete(grid: Grid, suite: str) -> list[Outcome]:
    columns = [column for column in grid.columns if grid.rows(suite, column)]
    by_key = {column: {row.key: row for row in grid.rows(suite, column)} for column in columns}
    shared = [
        row
        for row in grid.rows(suite, columns[0])
        if all(row.key in by_key[column] for column in columns)
    ]
    attack = suite in grid.suites("attack")
    return [
        Outcome(
            suite, attack, row.request, row.category, row.prefill,
            {column: by_key[column][row.key] for column in columns},
        )
        for row in shared
    ]  # fmt: skip


def _telling(outcome: Outcome, flag: Flag, compared: tuple[str, str] | None) -> tuple[bool, int]:
    """Whether the two that the headline compares differ, and how evenly all of them do."""
    flags = {column: flag(row) for column, row in outcome.replies.items()}
    differ = compared is not None and {flags.get(name) for name in compared} == {True, False}
    values = list(flags.values())
    return differ, min(values.count(True), values.count(False))
