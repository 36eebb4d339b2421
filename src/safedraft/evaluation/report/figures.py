"""The report's figures: pure functions from what was read to tables of estimates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from safedraft.evaluation.intervals import Estimate, average, mean, median
from safedraft.evaluation.report.findings import findings
from safedraft.evaluation.report.grid import (
    GROUPS,
    TIMED,
    Flag,
    Grid,
    correct,
    refused,
    share,
    shares,
    succeeded,
)
from safedraft.evaluation.report.outcomes import outcomes
from safedraft.evaluation.report.read import BASELINE, Logs, Row, Run
from safedraft.evaluation.report.tables import Figures, Point, Series, Table, Unit

_PARTS = ("target", "draft", "adapter", "no_adapter")
"""Arguments that put another model in the place of a pair's own."""


def all_figures(logs: Logs) -> Figures:
    """Everything that the logs support."""
    pairs = dict.fromkeys(run.pair for run in logs.runs)
    several = len(pairs) > 1

    def column(run: Run) -> str:
        return f"{run.pair}: {run.name}" if several else run.name

    runs: dict[tuple[str, str], Run] = {(run.suite, column(run)): run for run in logs.runs}
    names = sorted(
        dict.fromkeys(column(run) for run in logs.runs),
        key=lambda name: min(_rank(run) for run in logs.runs if column(run) == name),
    )
    baselines = {run.pair: column(run) for run in reversed(logs.runs) if run.defense == BASELINE}
    grid = Grid(runs, names, baselines)
    tables = [table for table in _tables(grid) if table.rows]
    headline, *besides = findings(tables, grid)
    return Figures(
        headline=headline,
        besides=besides,
        columns=names,
        baseline=next(iter(baselines.values()), None),
        tables=tables,
        by_prefill=by_prefill(grid),
        trade_off=trade_off(grid),
        match_ratios=match_ratios(grid),
        outcomes=outcomes(grid),
        notes=[*logs.notes, *_missing(grid), *_unscored(logs)],
        facts=_facts(logs),
    )


def _rank(run: Run) -> tuple[bool, bool, str]:
    return run.defense != BASELINE, run.defense != "ssd", run.name


def _tables(grid: Grid) -> list[Table]:
    attacks = grid.suites("attack")
    harmless = grid.suites("over_refusal", "ordinary")
    return [
        _by_suite(
            grid, "attack_success", "Attack success", attacks, succeeded,
            "Share of attacks after which the model does what was asked. Lower is safer.",
        ),
        _within_reach(grid, attacks),
        _by_suite(
            grid, "benign_refusal", "Refusal of harmless prompts", harmless, refused,
            "Share of harmless prompts that are refused. Lower is more useful.",
        ),
        _by_suite(
            grid, "accuracy", "Task accuracy", grid.suites("accuracy"), correct,
            "Share of right answers. Higher is better.",
        ),
        speed(grid),
        passes(grid),
    ]  # fmt: skip


def _by_suite(
    grid: Grid,
    name: str,
    title: str,
    suites: Sequence[str],
    flag: Flag,
    note: str,
) -> Table:
    cells = shares(grid, suites, flag)
    return Table(name, title, note, "share", suites, grid.columns, cells)


def _within_reach(grid: Grid, suites: Sequence[str]) -> Table:
    """Attack success where the target has a refusal to lose."""
    cells = {}
    for column in grid.columns:
        reach = grid.refused_directly(column) or set()
        for suite in suites:
            rows = [row for row in grid.rows(suite, column) if row.request in reach]
            cells[suite, column] = share(rows, succeeded)
    attacked = [suite for suite in suites if grid.family(suite) != "direct"]
    return Table(
        "attack_success_of_refused",
        "Attack success, among requests that the target alone refuses when asked directly",
        "Joined across suites by request: what the target answers anyway takes no attack.",
        "share",
        [suite for suite in attacked if any(cells[suite, name].count for name in grid.columns)],
        grid.columns,
        cells,
    )


def speed(grid: Grid) -> Table:
    """Tokens per second as a multiple of the target alone's, request by request."""

    def relative(suite: str, column: str) -> list[float]:
        baseline = grid.baseline_of(column)
        if _apart(grid, suite, column):
            return []
        alone = {row.key: _per_second(row) for row in grid.rows(suite, baseline or "")}
        both = ((_per_second(row), alone.get(row.key)) for row in grid.rows(suite, column))
        return [own / other for own, other in both if own and other]

    return _by_group(
        grid, {TIMED: ("ordinary",)}, relative, median,
        "speed", "Speed, relative to the target alone", "ratio",
        "Median over ordinary requests of tokens per second, each divided by the target alone's "
        "on the same request. Runs follow one another, so a drift of the machine is part of it.",
    )  # fmt: skip


def _apart(grid: Grid, suite: str, column: str) -> bool:
    """Whether a suite was decoded elsewhere, or with other threads, than by the target alone."""
    baseline = grid.baseline_of(column) or ""
    own, alone = (grid.runs.get((suite, name)) for name in (column, baseline))
    return bool(own and alone and own.machine != alone.machine)


def passes(grid: Grid) -> Table:
    """Tokens per pass of the target."""

    def per_pass(suite: str, column: str) -> list[float]:
        found = (row.statistics.get("tokens_per_target_pass") for row in grid.rows(suite, column))
        return [float(value) for value in found if value]

    return _by_group(
        grid, GROUPS, per_pass, mean, "tokens_per_pass", "Tokens per pass of the target", "number",
        "Mean over the replies. 1 without a draft; what the speed comes from.",
    )  # fmt: skip


def _by_group(
    grid: Grid,
    groups: Mapping[str, Sequence[str]],
    values: Callable[[str, str], list[float]],
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
            found = [value for suite in suites for value in values(suite, column)]
            replies = sum(len(grid.rows(suite, column)) for suite in suites)
            cells[group, column] = estimate(found, replies - len(found) if found else 0)
    rows = [group for group in groups if any(cells[group, name].count for name in grid.columns)]
    return Table(name, title, note, unit, rows, grid.columns, cells)


def _per_second(row: Row) -> float:
    return float(row.statistics.get("tokens_per_second") or 0.0)


def by_prefill(grid: Grid) -> list[Series]:
    """Attack success by the tokens of a compliant answer prefilled; 0 is asked directly."""
    tokens: dict[str, int] = {}
    for (suite, _), run in grid.runs.items():
        if run.family == "prefill" and run.prefill_tokens is not None:
            tokens[suite] = run.prefill_tokens
        elif run.family == "direct" and run.kind == "attack":
            tokens.setdefault(suite, 0)
    if len(set(tokens.values())) < 2:
        return []
    # Where a suite of prefills of length 0 was run, it is the one to compare with the others.
    zero = [suite for suite, count in tokens.items() if count == 0]
    if len(zero) > 1:
        chosen = next((suite for suite in zero if grid.family(suite) == "prefill"), zero[0])
        tokens = {suite: n for suite, n in tokens.items() if n or suite == chosen}
    ordered = sorted(tokens, key=lambda suite: tokens[suite])
    table = shares(grid, ordered, succeeded)
    found = []
    for column in grid.columns:
        known = [suite for suite in ordered if table[suite, column].count]
        values = [table[suite, column] for suite in known]
        if known:
            found.append(Series(column, [tokens[suite] for suite in known], values))
    return found


def trade_off(grid: Grid) -> list[Point]:
    """Attack success against harmless prompts answered, one point a configuration.

    Only configurations that ran all the suites that any other ran: otherwise they are not
    comparable.
    """
    attacks, harmless = grid.suites("attack"), grid.suites("over_refusal", "ordinary")
    if not attacks or not harmless:
        return []
    points = []
    for column in grid.columns:
        success = [share(grid.rows(suite, column), succeeded) for suite in attacks]
        answered = [share(grid.rows(suite, column), _answered) for suite in harmless]
        if all(estimate.count for estimate in (*success, *answered)):
            points.append(Point(column, average(success), average(answered)))
    return points


def _answered(row: Row) -> bool | None:
    return None if row.refused is None else not row.refused


LEAST = 3
"""Replies that a bin's mean rests on, at least."""


def match_ratios(grid: Grid) -> dict[str, list[Series]]:
    """The mean match ratio of the n-th bin, over the replies that have as many, by group."""
    return {
        group: found
        for group, kinds in GROUPS.items()
        if (found := [s for c in grid.columns if (s := _by_bin(grid, grid.suites(*kinds), c))])
    }


def _by_bin(grid: Grid, suites: Sequence[str], column: str) -> Series | None:
    replies = [
        list(row.statistics.get("match_ratios") or ())
        for suite in suites
        for row in grid.rows(suite, column)
        if row.statistics.get("draft_passes")
    ]
    bins = max(map(len, replies), default=0)
    values = [[reply[index] for reply in replies if len(reply) > index] for index in range(bins)]
    kept = [mean(found) for found in values if len(found) >= LEAST]
    return Series(column, range(1, len(kept) + 1), kept) if kept else None


def _missing(grid: Grid) -> list[str]:
    """What could not be worked out, and what would be needed."""
    notes = []
    if not grid.baselines:
        notes.append("There is no log of target_only: speed and reach have nothing to relate to.")
    elif not any(grid.refused_directly(column) is not None for column in grid.columns):
        notes.append("target_only has no log of direct requests: which it refuses is not known.")
    notes += [
        f"{suite} of {column} ran on another machine than the target alone's, or with other "
        "threads: its speed is not compared."
        for suite in grid.suites("ordinary")
        for column in grid.columns
        if _apart(grid, suite, column)
    ]
    return notes


def _unscored(logs: Logs) -> list[str]:
    """Why samples have no score, without the words of a judge that may follow a colon."""
    reasons = Counter(
        row.unscored.partition(":")[0] for run in logs.runs for row in run.rows if row.unscored
    )
    return [f"{count} unscored: {reason}." for reason, count in reasons.most_common()]


def _models(run: Run) -> str:
    """The pair's name, and what stood in the place of its own."""
    given = [f"{name} {run.arguments[name]}" for name in _PARTS if run.arguments.get(name)]
    return f"{run.pair} ({', '.join(given)})" if given else run.pair


def _facts(logs: Logs) -> dict[str, str]:
    """Pairs, machine, versions, dates."""

    def listed(values: Iterable[str]) -> str:
        return ", ".join(dict.fromkeys(value for value in values if value))

    packages = dict.fromkeys(name for run in logs.runs for name in run.versions)
    dates = sorted(run.created[:10] for run in logs.runs)
    return {
        "pair": listed(map(_models, logs.runs)),
        "machine": listed(run.machine for run in logs.runs) or "not recorded",
        "decoded": dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
        "samples": str(sum(len(run.rows) for run in logs.runs)),
        **{name: listed(run.versions.get(name, "") for run in logs.runs) for name in packages},
    }
