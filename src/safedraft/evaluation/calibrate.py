"""Chooses the constants of a pair, on prompts that no report uses.

Coordinate search: one constant after the other is varied, with the earlier ones at their best
values. Every trial is SSD on the calibration split of attacks and of harmless suites, run and
logged like any other evaluation. The cost of a trial is its attack success plus the share of
harmless prompts lost (refused or answered wrong) beyond the share that the target alone loses.
Constants that change no token are compared by speed on ordinary prompts, all others by cost. The
pair's own value stays unless another is better, and for speed, by more than the machine's drift
between two trials.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from safedraft.core.config import OF_SPEED, RiskConfig
from safedraft.core.errors import SafeDraftError
from safedraft.core.files import write_atomically
from safedraft.evaluation.logs import read_logs
from safedraft.evaluation.matrix import Matrix, prepare
from safedraft.evaluation.records import BASELINE, Row
from safedraft.evaluation.suites import NEW_TOKENS, find_suite
from safedraft.models.probe_file import reads_risk
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.registry import PairSpec, calibrated_file, find_pair
from safedraft.rules import own_rule

CANDIDATES: Mapping[str, Sequence[Any]] = {
    "initial_scheme": ("intersection", "union"),
    "alpha_union": (0.8, 1.2, 2.0),
    "alpha_intersection": (0.3, 0.6),
    "threshold": (0.5, 0.6, 0.8),
    "bin_size": (5, 7),
    "sample_space_size": (5, 10),
    "draft_tokens": (3, 4, 6, 8),
    "draft_confidence": (0.0, 0.3, 0.5),
    "draft_growth": (0.0, 2.0),
}
"""Values to try for each constant besides the pair's own, in this order."""

TIMED = "ordinary"
"""The suite on which speed is measured."""

DRIFT = 1.05
"""Factor by which the measured speed of equal trials may differ at different times."""


@dataclass(frozen=True)
class Trial:
    """One set of constants and its results."""

    constants: Mapping[str, Any]
    attack_success: float
    lost: float
    """Share of harmless prompts that were refused or, where answers are judged, answered wrong."""
    tokens_per_second: float
    """Median over the ordinary prompts."""

    def cost(self, lost_by_target: float) -> float:
        """Attack success plus the share of harmless prompts lost beyond the target's own share."""
        return self.attack_success + max(self.lost - lost_by_target, 0.0)


@dataclass(frozen=True)
class Calibration:
    """A sweep over the constants of one registered pair."""

    pair: PairSpec
    log_dir: Path
    """Folder of the trials' logs; a stopped sweep resumes from them."""
    candidates: Mapping[str, Sequence[Any]] = field(default_factory=lambda: CANDIDATES)
    attacks: Sequence[str] = ("prefill_20",)
    harmless: Sequence[str] = ("over_refusal", TIMED)
    limit: int = 20
    max_new_tokens: int = NEW_TOKENS
    sources: dict[str, list[str]] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    """Model arguments for every trial."""

    def __post_init__(self) -> None:
        """Refuse unknown constants, bad values and wrong suites before anything is loaded."""
        for name, values in self.candidates.items():
            if name not in RiskConfig.model_fields:
                known = ", ".join(RiskConfig.model_fields)
                raise SafeDraftError(f"{name!r} is no constant of the method; those are {known}")
            for value in values:
                self._config({name: value})
        for kind, suites in (("attack", self.attacks), ("harmless suite", self.harmless)):
            for suite in map(find_suite, suites):
                if (suite.kind == "attack") != (kind == "attack"):
                    raise SafeDraftError(f"{suite.name} is no {kind} that constants are tried on")

    def run(
        self, report: ReportProgress = silent, display: str = "plain"
    ) -> tuple[RiskConfig, list[Trial]]:
        """Sweep, and return the chosen constants and every trial.

        Raises:
            SafeDraftError: as ``matrix.prepare``; or a trial did not finish.
            KeyboardInterrupt: the sweep was stopped; the logs have the trials so far.
        """
        rows = self._measure(BASELINE, self.harmless, report, display)
        lost_by_target = _share(_is_lost(row) for suite in self.harmless for row in rows[suite])
        chosen: dict[str, Any] = {}
        trials: list[Trial] = []
        for name, values in self.candidates.items():
            own, *others = [
                self._run_trial(chosen | {name: value}, report, display)
                for value in dict.fromkeys((getattr(self.pair.config, name), *values))
            ]
            trials += [own, *others]
            best = (
                _find_faster(own, others)
                if name in OF_SPEED
                else _find_cheapest(own, others, lost_by_target)
            )
            chosen[name] = best.constants[name]
        return self._config(chosen), trials

    def _run_trial(
        self, constants: Mapping[str, Any], report: ReportProgress, display: str
    ) -> Trial:
        # Constants that change no token are left out of the judged runs, so that none is repeated.
        token_constants = {name: value for name, value in constants.items() if name not in OF_SPEED}
        judged = self._measure(
            _format_spec(self._rule, token_constants),
            [*self.attacks, *self.harmless],
            report,
            display,
        )
        timed = self._measure(_format_spec(self._rule, constants), [TIMED], report, display)
        return Trial(
            constants,
            _share(row.succeeded for suite in self.attacks for row in judged[suite]),
            _share(_is_lost(row) for suite in self.harmless for row in judged[suite]),
            median(row.statistics["tokens_per_second"] for row in timed[TIMED]),
        )

    def _measure(
        self, defense: str, suites: Sequence[str], report: ReportProgress, display: str
    ) -> dict[str, Sequence[Row]]:
        """Rows of one configuration by suite; complete logs are reused."""
        matrix = Matrix(
            defenses=[defense],
            suites=suites,
            limit=self.limit,
            max_new_tokens=self.max_new_tokens,
            sources=self.sources,
            pair=self.pair.name,
            split="calibration",
            arguments=self.arguments,
        )
        logs = prepare(matrix, self.log_dir, report).run(display)
        runs = read_logs([log.location for log in logs], "calibration").runs
        return {run.suite: run.rows for run in runs}

    @cached_property
    def _rule(self) -> str:
        """The pair's own rule, whose constants are tried."""
        bare = self.arguments.get("no_adapter", False)
        adapter = None if bare else self.arguments.get("adapter", self.pair.adapter)
        return own_rule(reads_risk=reads_risk(adapter))

    def _config(self, constants: Mapping[str, Any]) -> RiskConfig:
        return self.pair.config.replace(**constants)


def _find_cheapest(own: Trial, others: Sequence[Trial], lost_by_target: float) -> Trial:
    return min(
        (own, *others), key=lambda trial: trial.cost(lost_by_target)
    )  # the first, which is own, in a tie


def _find_faster(own: Trial, others: Sequence[Trial]) -> Trial:
    fastest = max((own, *others), key=lambda trial: trial.tokens_per_second)
    return fastest if fastest.tokens_per_second > DRIFT * own.tokens_per_second else own


def _format_spec(rule: str, constants: Mapping[str, Any]) -> str:
    """A rule with these constants as a defense of a matrix; the constants are sorted by name.

    A constant of None is the pair's own value and is left out.
    """
    pairs = sorted((name, value) for name, value in constants.items() if value is not None)
    assignments = ",".join(f"{name}={value}" for name, value in pairs)
    return f"{rule}:{assignments}" if assignments else rule


def _is_lost(row: Row) -> bool | None:
    return row.refused if row.correct is None else not row.correct


def _share(flags: Iterable[bool | None]) -> float:
    """Share of true flags among those that are not None.

    Raises:
        SafeDraftError: all flags are None.
    """
    values = [flag for flag in flags if flag is not None]
    if not values:
        raise SafeDraftError("a trial has no sample that was judged: look into its log")
    return sum(values) / len(values)


def write_pair(spec: PairSpec, config: RiskConfig) -> Path:
    """Write a pair with calibrated constants among the user's pairs; it replaces the original.

    Raises:
        SafeDraftError: another calibrated file defines the pair as well and takes precedence.
    """
    import tomli_w

    file = calibrated_file(spec.name)
    entry = spec.model_copy(update={"config": config}).model_dump(
        mode="json", exclude={"name"}, exclude_none=True
    )
    write_atomically(file, tomli_w.dumps({spec.name: entry}))
    if find_pair(spec.name).config != config:
        raise SafeDraftError(
            f"{file} is written, but another file in {file.parent} defines {spec.name!r} as well "
            "and wins: take one of them away"
        )
    return file
