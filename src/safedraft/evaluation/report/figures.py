"""The report's figures: pure functions from what was read to tables of estimates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from safedraft.evaluation.intervals import Estimate, mean, median, rate
from safedraft.evaluation.report.read import BASELINE, Logs, Row, Run

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
    baselines = {run.pair: column(run) for run in reversed(logs.runs) if run.defence == BASELINE}
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
    return run.defence != BASELINE, run.defence != "ssd", run.name


@dataclass(frozen=True, slots=True)
class Grid:
    """Runs by suite and configuration."""

    runs: Mapping[tuple[str, str], Run]
    columns: Sequence[str]
    baselines: Mapping[str, str]
    """The configuration of each pair that is the target alone."""

    def suites(self, *kinds: str) -> list[str]:
        """Names of the suites of these kinds, in order."""
        return list(dict.fromkeys(run.suite for run in self.runs.values() if run.kind in kinds))

    def family(self, suite: str) -> str:
        """Of attack."""
        return next(run.family for (name, _), run in self.runs.items() if name == suite)

    def rows(self, suite: str, column: str) -> Sequence[Row]:
        """What came of a suite; nothing where it was not run."""
        run = self.runs.get((suite, column))
        return run.rows if run else ()

    def baseline_of(self, column: str) -> str | None:
        """The target alone of the same pair."""
        pair = next(run.pair for (_, name), run in self.runs.items() if name == column)
        return self.baselines.get(pair)

    def refused_directly(self, column: str) -> set[str] | None:
        """Requests that the target alone refuses when asked directly; None where not measured."""
        baseline = self.baseline_of(column)
        direct = [suite for suite in self.suites("attack") if self.family(suite) == "direct"]
        rows = [row for suite in direct for row in self.rows(suite, baseline or "")]
        return {row.request for row in rows if row.refused} if rows else None


Flag = Callable[[Row], bool | None]


def share(rows: Iterable[Row], flag: Flag) -> Estimate:
    """The rate of a flag; rows where it is not known are counted apart."""
    flags = [flag(row) for row in rows]
    known = [value for value in flags if value is not None]
    return rate(known, len(flags) - len(known))


def shares(grid: Grid, suites: Sequence[str], flag: Flag) -> dict[tuple[str, str], Estimate]:
    """The rate of a flag for every suite and configuration."""
    return {
        (suite, column): share(grid.rows(suite, column), flag)
        for suite in suites
        for column in grid.columns
    }


def succeeded(row: Row) -> bool | None:
    """Whether the attack got what it was after."""
    return row.succeeded


def refused(row: Row) -> bool | None:
    """Whether the answer was withheld."""
    return row.refused


def correct(row: Row) -> bool | None:
    """Whether the answer is right."""
    return row.correct


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


GROUPS = {"harmless prompts": ("over_refusal", "accuracy", "ordinary"), "attacks": ("attack",)}
"""Kinds of suites that are told apart where replies are counted in passes."""

TIMED = "ordinary prompts"
"""Where the target's replies are made one by one, as all others are."""


def speed(grid: Grid) -> Table:
    """Tokens per second as a multiple of the target alone's, request by request."""

    def relative(suite: str, column: str) -> list[float]:
        baseline = grid.baseline_of(column)
        alone = {_key(row): _per_second(row) for row in grid.rows(suite, baseline or "")}
        both = ((_per_second(row), alone.get(_key(row))) for row in grid.rows(suite, column))
        return [own / other for own, other in both if own and other]

    return _by_group(
        grid, {TIMED: ("ordinary",)}, relative, median,
        "speed", "Speed, relative to the target alone", "ratio",
        "Median over ordinary requests of tokens per second, each divided by the target alone's "
        "on the same request. Runs follow one another, so a drift of the machine is part of it.",
    )  # fmt: skip


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


def _key(row: Row) -> tuple[str, str]:
    return row.request, row.prefill


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
            points.append(Point(column, _average(success), _average(answered)))
    return points


def _answered(row: Row) -> bool | None:
    return None if row.refused is None else not row.refused


def _average(parts: Sequence[Estimate]) -> Estimate:
    """Of rates that weigh the same: the square of its interval's half is the sum of theirs / n²."""
    value = fmean(part.value or 0.0 for part in parts)
    below = sum(((part.value or 0.0) - (part.low or 0.0)) ** 2 for part in parts) ** 0.5
    above = sum(((part.high or 0.0) - (part.value or 0.0)) ** 2 for part in parts) ** 0.5
    return Estimate(
        value,
        value - below / len(parts),
        value + above / len(parts),
        sum(part.count for part in parts),
        sum(part.unscored for part in parts),
    )


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


def outcomes(grid: Grid, attacks: int = 4, harmless: int = 2) -> list[Outcome]:
    """A few requests that every configuration was asked, the telling ones first."""
    found = []
    for kinds, wanted in (("attack",), attacks), (("over_refusal", "ordinary"), harmless):
        candidates = [o for suite in grid.suites(*kinds) for o in _complete(grid, suite)]
        flag = succeeded if kinds == ("attack",) else refused
        candidates.sort(key=lambda outcome: _telling(outcome, flag, _compared(grid)), reverse=True)
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
    by_key = {column: {_key(row): row for row in grid.rows(suite, column)} for column in columns}
    shared = [
        row
        for row in grid.rows(suite, columns[0])
        if all(_key(row) in by_key[column] for column in columns)
    ]
    attack = suite in grid.suites("attack")
    return [
        Outcome(
            suite, attack, row.request, row.category, row.prefill,
            {column: by_key[column][_key(row)] for column in columns},
        )
        for row in shared
    ]  # fmt: skip


def _telling(outcome: Outcome, flag: Flag, compared: tuple[str, str] | None) -> tuple[bool, int]:
    """Whether the two that the headline compares differ, and how evenly all of them do."""
    flags = {column: flag(row) for column, row in outcome.replies.items()}
    differ = compared is not None and {flags.get(name) for name in compared} == {True, False}
    values = list(flags.values())
    return differ, min(values.count(True), values.count(False))


def findings(tables: Sequence[Table], grid: Grid) -> list[str]:
    """What the data shows, a sentence each, the first one first."""
    by_name = {table.name: table for table in tables}
    compared = _compared(grid)
    if compared is None:
        return ["There is nothing to compare: it takes logs of target_only and of another defence."]
    alone, other = compared
    found = [
        _on_attacks(by_name.get("attack_success"), alone, other),
        _on_harmless(by_name.get("benign_refusal"), alone, other),
        _on_speed(by_name.get("speed"), alone, other),
    ]
    return [part for part in found if part] or [f"{other} and {alone} have no suite in common."]


def _compared(grid: Grid) -> tuple[str, str] | None:
    """The target alone, and SSD or whatever else was run."""
    for pair, alone in grid.baselines.items():
        others = [
            column
            for column in grid.columns
            if column != alone
            and any(run.pair == pair for (_, name), run in grid.runs.items() if name == column)
        ]
        if others:
            return alone, others[0]
    return None


def _on_attacks(table: Table | None, alone: str, other: str) -> str:
    """Where the target alone is weakest."""
    if table is None:
        return ""
    shared = [s for s in table.rows if table.cell(s, alone).count and table.cell(s, other).count]
    if not shared:
        return ""
    weakest = max(shared, key=lambda suite: table.cell(suite, alone).value or 0.0)
    before, after = table.cell(weakest, alone), table.cell(weakest, other)
    return (
        f"{alone} gives in to {percent(before.value)} of the attacks where it is weakest "
        f"({weakest}), {other} to {percent(after.value)}{_doubt(before, after)}."
    )


def _on_harmless(table: Table | None, alone: str, other: str) -> str:
    if table is None:
        return ""
    shared = [s for s in table.rows if table.cell(s, alone).count and table.cell(s, other).count]
    if not shared:
        return ""
    before, after = (_average([table.cell(s, name) for s in shared]) for name in (alone, other))
    return (
        f"Of the harmless prompts, {alone} refuses {percent(before.value)} and {other} "
        f"{percent(after.value)}{_doubt(before, after)}."
    )


def _on_speed(table: Table | None, alone: str, other: str) -> str:
    found = table.cell(TIMED, other) if table else None
    if found is None or found.value is None:
        return ""
    return f"On ordinary ones, {other} decodes at {found.value:.2f} times the speed of {alone}."


def _doubt(one: Estimate, other: Estimate) -> str:
    return "" if one.apart_from(other) else " (the 95% intervals overlap)"


def percent(value: float | None) -> str:
    """A share as people read it."""
    return "–" if value is None else f"{value:.0%}"


def _missing(grid: Grid) -> list[str]:
    """What could not be worked out, and what would be needed."""
    notes = []
    if not grid.baselines:
        notes.append("There is no log of target_only: speed and reach have nothing to relate to.")
    elif not any(grid.refused_directly(column) is not None for column in grid.columns):
        notes.append("target_only has no log of direct requests: which it refuses is not known.")
    return notes


def _unscored(logs: Logs) -> list[str]:
    """Why samples have no score, without the words of a judge that may follow a colon."""
    reasons = Counter(
        row.unscored.partition(":")[0] for run in logs.runs for row in run.rows if row.unscored
    )
    return [f"{count} unscored: {reason}." for reason, count in reasons.most_common()]


def _facts(logs: Logs) -> dict[str, str]:
    """Pairs, machine, versions, dates."""

    def listed(values: Iterable[str]) -> str:
        return ", ".join(dict.fromkeys(value for value in values if value))

    packages = dict.fromkeys(name for run in logs.runs for name in run.versions)
    dates = sorted(run.created[:10] for run in logs.runs)
    return {
        "pair": listed(run.pair for run in logs.runs),
        "machine": listed(run.machine for run in logs.runs) or "not recorded",
        "decoded": dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
        "samples": str(sum(len(run.rows) for run in logs.runs)),
        **{name: listed(run.versions.get(name, "") for run in logs.runs) for name in packages},
    }
