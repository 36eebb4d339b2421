"""The report's figures: pure functions from logs to tables of estimates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from safedraft.evaluation.intervals import Estimate, average, mean, median
from safedraft.evaluation.logs import Logs
from safedraft.evaluation.records import BASELINE, Row, Run
from safedraft.evaluation.report.findings import summarize
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
from safedraft.evaluation.report.outcomes import select_outcomes
from safedraft.evaluation.report.tables import Figures, Point, Series, Table, Unit

_MODEL_ARGUMENTS = ("target", "draft", "adapter", "no_adapter")
"""Arguments that replace one of a pair's models."""


def build_figures(logs: Logs) -> Figures:
    """Compute everything for which the logs have data."""
    pairs = dict.fromkeys(run.pair for run in logs.runs)
    several = len(pairs) > 1

    def name_column(run: Run) -> str:
        return f"{run.pair}: {run.name}" if several else run.name

    runs: dict[tuple[str, str], Run] = {(run.suite, name_column(run)): run for run in logs.runs}
    names = sorted(
        dict.fromkeys(name_column(run) for run in logs.runs),
        key=lambda name: min(_rank(run) for run in logs.runs if name_column(run) == name),
    )
    baselines = {
        run.pair: name_column(run) for run in reversed(logs.runs) if run.defense == BASELINE
    }
    grid = Grid(runs, names, baselines)
    tables = [table for table in _build_tables(grid) if table.rows]
    headline, *further_findings = summarize(tables, grid)
    return Figures(
        headline=headline,
        further_findings=further_findings,
        columns=names,
        baseline=next(iter(baselines.values()), None),
        tables=tables,
        by_prefill=compute_prefill_curves(grid),
        trade_off=compute_trade_off(grid),
        match_ratios=compute_match_ratios(grid),
        outcomes=select_outcomes(grid),
        notes=[*logs.notes, *_explain_missing(grid), *_count_unscored(logs)],
        facts=_collect_facts(logs),
    )


def _rank(run: Run) -> tuple[bool, bool, str]:
    return run.defense != BASELINE, run.defense != "ssd", run.name


def _build_tables(grid: Grid) -> list[Table]:
    attacks = grid.suites("attack")
    harmless = grid.suites("over_refusal", "ordinary")
    return [
        _by_suite(
            grid, "attack_success", "Attack success", attacks, succeeded,
            "Share of attacks after which the model complies. Lower is safer.",
        ),
        _among_refused(grid, attacks),
        _by_suite(
            grid, "benign_refusal", "Refusal of harmless prompts", harmless, refused,
            "Share of harmless prompts that are refused. Lower is more useful.",
        ),
        _by_suite(
            grid, "accuracy", "Task accuracy", grid.suites("accuracy"), correct,
            "Share of right answers. Higher is better.",
        ),
        compute_speed(grid),
        compute_tokens_per_pass(grid),
        compute_signals(grid),
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


def _among_refused(grid: Grid, suites: Sequence[str]) -> Table:
    """Attack success among requests that the target alone refuses when asked directly."""
    cells = {}
    for column in grid.columns:
        refused_requests = grid.refused_directly(column) or set()
        for suite in suites:
            rows = [row for row in grid.rows(suite, column) if row.request in refused_requests]
            cells[suite, column] = share(rows, succeeded)
    attack_suites = [suite for suite in suites if grid.family(suite) != "direct"]
    return Table(
        "attack_success_of_refused",
        "Attack success, among requests that the target alone refuses when asked directly",
        "Requests are matched across suites; those that the target answers anyway need no attack.",
        "share",
        [
            suite
            for suite in attack_suites
            if any(cells[suite, name].count for name in grid.columns)
        ],
        grid.columns,
        cells,
    )


def compute_speed(grid: Grid) -> Table:
    """Tokens per second as a multiple of the target alone's, request by request."""

    def ratios(suite: str, column: str) -> list[float]:
        baseline = grid.baseline_of(column)
        if _machines_differ(grid, suite, column):
            return []
        baseline_speeds = {
            row.key: _tokens_per_second(row) for row in grid.rows(suite, baseline or "")
        }
        speeds = (
            (_tokens_per_second(row), baseline_speeds.get(row.key))
            for row in grid.rows(suite, column)
        )
        return [own / other for own, other in speeds if own and other]

    return _by_group(
        grid, {TIMED: ("ordinary",)}, ratios, median,
        "speed", "Speed, relative to the target alone", "ratio",
        "Median over ordinary requests of tokens per second, each divided by the target alone's "
        "on the same request. Runs are consecutive: drift of the machine is included.",
    )  # fmt: skip


def _machines_differ(grid: Grid, suite: str, column: str) -> bool:
    """Whether a suite ran on another machine, or with other threads, than the target alone."""
    baseline = grid.baseline_of(column) or ""
    own, alone = (grid.runs.get((suite, name)) for name in (column, baseline))
    return bool(own and alone and own.machine != alone.machine)


def compute_tokens_per_pass(grid: Grid) -> Table:
    """Tokens per forward pass of the target."""

    def per_pass(suite: str, column: str) -> list[float]:
        values = (row.statistics.get("tokens_per_target_pass") for row in grid.rows(suite, column))
        return [float(value) for value in values if value]

    return _by_group(
        grid, GROUPS, per_pass, mean, "tokens_per_pass", "Tokens per pass of the target", "number",
        "Mean over the replies; 1 without a draft. More tokens per pass make decoding faster.",
    )  # fmt: skip


def compute_signals(grid: Grid) -> Table:
    """Share of a reply's tokens at which its rule raised its signal."""

    def signals(suite: str, column: str) -> list[float]:
        figures = [row.statistics for row in grid.rows(suite, column)]
        return [
            one["signals"] / one["tokens"]
            for one in figures
            if one.get("tokens") and one.get("signals") is not None
        ]

    return _by_group(
        grid, GROUPS, signals, mean, "signals", "Signals of the rule", "share",
        "Mean share of a reply's tokens at which the rule raised its signal: positions that EASD "
        "penalized. A dash where a rule has no signal.",
    )  # fmt: skip


def _by_group(
    grid: Grid,
    groups: Mapping[str, Sequence[str]],
    read_values: Callable[[str, str], list[float]],
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
            values = [value for suite in suites for value in read_values(suite, column)]
            replies = sum(len(grid.rows(suite, column)) for suite in suites)
            cells[group, column] = estimate(values, replies - len(values) if values else 0)
    rows = [group for group in groups if any(cells[group, name].count for name in grid.columns)]
    return Table(name, title, note, unit, rows, grid.columns, cells)


def _tokens_per_second(row: Row) -> float:
    return float(row.statistics.get("tokens_per_second") or 0.0)


def compute_prefill_curves(grid: Grid) -> list[Series]:
    """Attack success by number of prefilled tokens; 0 is the direct request."""
    tokens: dict[str, int] = {}
    for (suite, _), run in grid.runs.items():
        if run.family == "prefill" and run.prefill_tokens is not None:
            tokens[suite] = run.prefill_tokens
        elif run.family == "direct" and run.kind == "attack":
            tokens.setdefault(suite, 0)
    if len(set(tokens.values())) < 2:
        return []
    # A prefill suite of length 0 is compared with the others in preference to direct requests.
    zero = [suite for suite, count in tokens.items() if count == 0]
    if len(zero) > 1:
        preferred = next((suite for suite in zero if grid.family(suite) == "prefill"), zero[0])
        tokens = {suite: n for suite, n in tokens.items() if n or suite == preferred}
    ordered = sorted(tokens, key=lambda suite: tokens[suite])
    estimates = shares(grid, ordered, succeeded)
    curves = []
    for column in grid.columns:
        suites = [suite for suite in ordered if estimates[suite, column].count]
        values = [estimates[suite, column] for suite in suites]
        if suites:
            curves.append(Series(column, [tokens[suite] for suite in suites], values))
    return curves


def compute_trade_off(grid: Grid) -> list[Point]:
    """Attack success and share of harmless prompts answered, one point for each configuration.

    Configurations that lack a suite that another one ran are left out: they are not comparable.
    """
    attacks, harmless = grid.suites("attack"), grid.suites("over_refusal", "ordinary")
    if not attacks or not harmless:
        return []
    points = []
    for column in grid.columns:
        success = [share(grid.rows(suite, column), succeeded) for suite in attacks]
        answered = [share(grid.rows(suite, column), _is_answered) for suite in harmless]
        if all(estimate.count for estimate in (*success, *answered)):
            points.append(Point(column, average(success), average(answered)))
    return points


def _is_answered(row: Row) -> bool | None:
    return None if row.refused is None else not row.refused


MIN_REPLIES = 3
"""Minimum number of replies for the mean of a bin."""


def compute_match_ratios(grid: Grid) -> dict[str, list[Series]]:
    """Mean match ratio of the n-th bin, over the replies that reach it, by group."""
    return {
        group: series
        for group, kinds in GROUPS.items()
        if (
            series := [
                s for c in grid.columns if (s := _average_bins(grid, grid.suites(*kinds), c))
            ]
        )
    }


def _average_bins(grid: Grid, suites: Sequence[str], column: str) -> Series | None:
    replies = [
        list(row.statistics.get("match_ratios") or ())
        for suite in suites
        for row in grid.rows(suite, column)
        if row.statistics.get("draft_passes")
    ]
    bins = max(map(len, replies), default=0)
    values = [[reply[index] for reply in replies if len(reply) > index] for index in range(bins)]
    means = [mean(ratios) for ratios in values if len(ratios) >= MIN_REPLIES]
    return Series(column, range(1, len(means) + 1), means) if means else None


def _explain_missing(grid: Grid) -> list[str]:
    """Which figures are missing, and which logs they would need."""
    notes = []
    if not grid.baselines:
        notes.append(
            "There is no log of target_only: relative speed and attack success among refused "
            "requests are missing."
        )
    elif not any(grid.refused_directly(column) is not None for column in grid.columns):
        notes.append(
            "target_only has no log of direct requests: it is unknown which of them it refuses."
        )
    notes += [
        f"{suite} of {column} ran on another machine than the target alone's, or with other "
        "threads: its speed is not compared."
        for suite in grid.suites("ordinary")
        for column in grid.columns
        if _machines_differ(grid, suite, column)
    ]
    return notes


def _count_unscored(logs: Logs) -> list[str]:
    """Why samples have no score; a judge's own words after a colon are left out."""
    reasons = Counter(
        row.unscored.partition(":")[0] for run in logs.runs for row in run.rows if row.unscored
    )
    return [f"{count} unscored: {reason}." for reason, count in reasons.most_common()]


def _describe_models(run: Run) -> str:
    """The pair's name, and the arguments that replaced its models."""
    replaced = [
        f"{name} {run.arguments[name]}" for name in _MODEL_ARGUMENTS if run.arguments.get(name)
    ]
    return f"{run.pair} ({', '.join(replaced)})" if replaced else run.pair


def _collect_facts(logs: Logs) -> dict[str, str]:
    """Pairs, machine, versions, dates."""

    def join_unique(values: Iterable[str]) -> str:
        return ", ".join(dict.fromkeys(value for value in values if value))

    packages = dict.fromkeys(name for run in logs.runs for name in run.versions)
    dates = sorted(run.created[:10] for run in logs.runs)
    return {
        "pair": join_unique(map(_describe_models, logs.runs)),
        "machine": join_unique(run.machine for run in logs.runs) or "not recorded",
        "decoded": dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
        "samples": str(sum(len(run.rows) for run in logs.runs)),
        **{name: join_unique(run.versions.get(name, "") for run in logs.runs) for name in packages},
    }
