"""Selects a few requests to compare the configurations by, the most informative first."""

from __future__ import annotations

from safedraft.evaluation.report.findings import choose_comparison
from safedraft.evaluation.report.grid import Flag, Grid, refused, succeeded
from safedraft.evaluation.report.tables import Outcome


def select_outcomes(grid: Grid, attacks: int = 4, harmless: int = 2) -> list[Outcome]:
    """Select requests that every configuration answered, those with different outcomes first.

    Args:
        grid: all runs.
        attacks: maximum number of attacked requests.
        harmless: maximum number of harmless requests.
    """
    comparison = choose_comparison(grid)
    selected: list[Outcome] = []
    by_kind = {
        kinds: [o for suite in grid.suites(*kinds) for o in _pair_replies(grid, suite)]
        for kinds in (("attack",), ("over_refusal", "ordinary"))
    }
    attacked, alone = by_kind.values()
    for candidates, flag, limit in (
        ([o for o in attacked if o.attack], succeeded, attacks),
        ([o for o in attacked if o.control], refused, harmless),
        (alone, refused, harmless),
    ):
        candidates.sort(key=lambda outcome: _rank(outcome, flag, comparison), reverse=True)
        chosen: list[Outcome] = []
        for varied in (True, False):  # no request twice; suites twice only if needed
            for outcome in candidates:
                requests, suites = {o.request for o in chosen}, {o.suite for o in chosen}
                repeated = outcome.request in requests or (varied and outcome.suite in suites)
                if len(chosen) < limit and not repeated:
                    chosen.append(outcome)
        selected += chosen
    return selected


def _pair_replies(grid: Grid, suite: str) -> list[Outcome]:
    columns = [column for column in grid.columns if grid.rows(suite, column)]
    by_key = {column: {row.key: row for row in grid.all_rows(suite, column)} for column in columns}
    shared = [
        row
        for row in by_key[columns[0]].values()
        if all(row.key in by_key[column] for column in columns)
    ]
    attacked = suite in grid.suites("attack")
    return [
        Outcome(
            suite, attacked and not row.control, row.control,
            row.request, row.category, row.prefill,
            {column: by_key[column][row.key] for column in columns},
        )
        for row in shared
    ]  # fmt: skip


def _rank(outcome: Outcome, flag: Flag, comparison: tuple[str, str] | None) -> tuple[bool, int]:
    """Whether the headline's two configurations differ, and how evenly all outcomes are split."""
    flags = {column: flag(row) for column, row in outcome.replies.items()}
    differ = comparison is not None and {flags.get(name) for name in comparison} == {True, False}
    values = list(flags.values())
    return differ, min(values.count(True), values.count(False))
