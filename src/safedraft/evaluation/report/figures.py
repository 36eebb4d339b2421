"""The report's figures: pure functions from logs to tables of estimates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from safedraft.evaluation.logs import Logs
from safedraft.evaluation.records import BASELINE, Run
from safedraft.evaluation.report.attacks import (
    compare_attacks,
    compute_prefill_curves,
    compute_trade_off,
    list_failures,
    list_shared_suites,
    measure_leaks,
)
from safedraft.evaluation.report.cost import (
    compute_match_ratios,
    compute_signals,
    compute_speed,
    compute_tokens_per_pass,
    machines_differ,
)
from safedraft.evaluation.report.findings import summarize
from safedraft.evaluation.report.grid import Grid, share, succeeded
from safedraft.evaluation.report.outcomes import select_outcomes
from safedraft.evaluation.report.tables import Figures, Section, Table
from safedraft.evaluation.report.usefulness import compare_accuracy, compare_harmless

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
    sections = _build_sections(grid)
    tables = [table for section in sections for table in section.tables]
    headline, *further_findings = summarize(tables, grid)
    return Figures(
        headline=headline,
        conditions=describe_conditions(logs.runs),
        further_findings=further_findings,
        warnings=_list_warnings((name_column(run), run) for run in logs.runs),
        columns=names,
        baseline=next(iter(baselines.values()), None),
        sections=sections,
        by_prefill=compute_prefill_curves(grid),
        trade_off=compute_trade_off(grid, names),
        match_ratios=compute_match_ratios(grid),
        outcomes=select_outcomes(grid),
        notes=[*logs.notes, *_explain_missing(grid), *_count_unscored(logs)],
        facts=_collect_facts(logs),
        failures=list_failures(grid),
    )


def _list_warnings(runs: Iterable[tuple[str, Run]]) -> list[str]:
    """A warning of each kind, after the names of the configurations that it is about."""
    names: dict[str, list[str]] = {}
    for name, run in runs:
        for warning in run.warnings:
            names.setdefault(warning, []).append(name)
    return [f"{', '.join(dict.fromkeys(found))}: {text}" for text, found in names.items()]


def describe_conditions(runs: Sequence[Run]) -> str:
    """Judge, length, temperature, languages and numbers of the runs, in one line."""
    judged = [judge for run in runs for judge in run.judges]
    temperatures = {run.temperature for run in runs}
    sampled = [f"{value:g}" for value in sorted(temperatures - {0})]
    decoding = ["greedy"] * (0 in temperatures) + [f"temperature {value}" for value in sampled]
    attacks = [run for run in runs if run.kind == "attack"] or runs
    requests = _span(len({row.id for row in run.rows if not row.control}) for run in attacks)
    controls = _span(len({row.id for row in run.rows if row.control}) for run in attacks)
    replies = _span(max((row.reply for row in run.rows), default=1) for run in runs)
    parts = [
        f"Judge: {', '.join(dict.fromkeys(judged)) or 'none'}",
        f"replies of at most {_span(run.max_new_tokens for run in runs)} tokens",
        " and ".join(decoding) + (f", {replies} replies each" if replies != "1" else ""),
        "languages: " + ", ".join(sorted({row.language for run in runs for row in run.rows})),
        f"{requests} requests a suite" + (f" and {controls} controls" if controls != "0" else ""),
    ]
    return "; ".join(parts) + "."


def _span(values: Iterable[int]) -> str:
    known = sorted(set(values))
    return f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"


def _rank(run: Run) -> tuple[bool, bool, str]:
    return run.defense != BASELINE, run.defense != "ssd", run.name


def _build_sections(grid: Grid) -> list[Section]:
    attacks = grid.suites("attack")
    sections = [
        compare_attacks(grid),
        _alone(_among_refused(grid, attacks)),
        _alone(measure_leaks(grid)),
        compare_harmless(grid),
        compare_accuracy(grid),
        *map(_alone, (compute_speed(grid), compute_tokens_per_pass(grid), compute_signals(grid))),
    ]
    return [section for section in sections if section.tables[0].rows]


def _alone(table: Table) -> Section:
    return Section(table.title, table.note, [table])


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


def _explain_missing(grid: Grid) -> list[str]:
    """Explain which figures are missing, and which logs they need."""
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
    attacks, shared = grid.suites("attack"), list_shared_suites(grid, grid.columns)
    if len(shared) < len(attacks):
        notes.append(
            "The plot of attack success against harmless requests refused is over the "
            f"{len(shared)} of {len(attacks)} suites of attacks that all configurations ran: "
            f"{', '.join(shared) or 'there is none'}."
        )
    notes += [
        f"{suite} of {column} ran on another machine than the target alone's, or with other "
        "threads: its speed is not compared."
        for suite in grid.suites("ordinary")
        for column in grid.columns
        if machines_differ(grid, suite, column)
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
