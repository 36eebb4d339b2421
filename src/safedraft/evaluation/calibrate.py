"""Chooses the constants of a pair, on prompts that no report uses.

Coordinate search: one constant after the other is varied, with the earlier ones at their best
values. Every trial is the pair's rule on the calibration split of attacks, with their controls, and
of harmless suites, run and logged like any other evaluation. The fewest attacks may succeed among
the trials that lose (refuse, or answer wrong) at most ``max_lost`` more of the harmless prompts
than the target alone does. If there is no such trial, the sum of both shares decides. Constants
that change no token are compared by speed on ordinary prompts. The pair's own value stays unless
another is better, and for speed, by more than the machine's drift between two trials.

The constants of the risk are tried together. Each reply is decoded at each of the three levels of
risk, and what a pair of bounds would have replied is read from these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from safedraft.core.config import OF_SPEED, RiskConfig, show_constant
from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.logs import read_logs
from safedraft.evaluation.matrix import Matrix, prepare
from safedraft.evaluation.records import BASELINE, Row
from safedraft.evaluation.suites import NEW_TOKENS, find_suite
from safedraft.evaluation.trials import Trial, choose_rows, find_trade_off, is_lost, share_of
from safedraft.models.probe_file import reads_risk
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.registry import PairSpec, calibrated_file, write_pair
from safedraft.rules import find_rule, own_rule
from safedraft.rules.risk import Level

CANDIDATES: Mapping[str, Sequence[Any]] = {
    "initial_scheme": ("intersection", "union"),
    "alpha_union": (0.8, 1.2, 2.0),
    "alpha_intersection": (0.3, 0.6),
    "threshold": (0.5, 0.6, 0.8),
    "bin_size": (5, 7),
    "sample_space_size": (5, 10),
    "alpha_harmless": (0.0, 0.1, 0.3),
    "harmless_below": (0.01, 0.02, 0.05, 0.1, 0.2, 0.3),
    "risky_above": (0.2, 0.3, 0.4, 0.5, 0.7),
    "draft_tokens": (3, 4, 6, 8),
    "draft_confidence": (0.0, 0.3, 0.5),
    "draft_growth": (0.0, 2.0),
}
"""Values to try for each constant besides the pair's own, in this order."""

_WIDE = {"harmless_below": 0.0, "risky_above": 1.0}
"""Bounds that leave room for each other, with which a value of one is checked alone."""

OF_RISK = ("alpha_harmless", "harmless_below", "risky_above")
"""Constants that are tried together."""

TIMED = "ordinary"
"""The suite on which speed is measured."""

DRIFT = 1.05
"""Factor by which the measured speed of equal trials may differ at different times."""


@dataclass(frozen=True)
class CalibrationResult:
    """The result of a sweep: the chosen constants and all trials."""

    config: RiskConfig
    """The chosen constants."""
    target: Trial
    """The target alone, whose constants are empty."""
    trials: Sequence[Trial]


@dataclass(frozen=True)
class Calibration:
    """A sweep over the constants of one registered pair."""

    pair: PairSpec
    log_dir: Path
    """Folder of the trials' logs; a stopped sweep resumes from them."""
    candidates: Mapping[str, Sequence[Any]] | None = None
    """Values to try by constant; None tries those of ``CANDIDATES`` that the pair's rule has."""
    attacks: Sequence[str] = ("prefill_20", "histories")
    harmless: Sequence[str] = ("over_refusal", TIMED)
    max_lost: float = 0.05
    """Largest share of harmless prompts that may be lost beyond the target's own share."""
    limit: int = 20
    """Number of requests of each suite, and of controls of each attack."""
    max_new_tokens: int = NEW_TOKENS
    sources: dict[str, list[str]] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    """Model arguments for every trial."""
    report: ReportProgress = silent
    display: str = "plain"
    """The display of inspect_ai during a run."""

    def __post_init__(self) -> None:
        """Refuse unknown constants, bad values and wrong suites before anything is loaded."""
        for name, values in (self.candidates or {}).items():
            if name not in self._constants:
                known = ", ".join(self._constants)
                raise SafeDraftError(
                    f"{name!r} is not a constant of {self._rule}, the rule of {self.pair.name}; "
                    f"its constants are {known}"
                )
            for value in values:
                self._config((_WIDE if name in OF_RISK else {}) | {name: value})
        for kind, suites in (("an attack", self.attacks), ("a harmless suite", self.harmless)):
            for suite in map(find_suite, suites):
                if (suite.kind == "attack") != (kind == "an attack"):
                    raise SafeDraftError(f"{suite.name} is not {kind}: name one")

    def run(self) -> CalibrationResult:
        """Try the constants, and choose the best.

        Raises:
            SafeDraftError: as ``matrix.prepare``; or a trial did not finish.
            KeyboardInterrupt: the sweep was stopped; the logs have the trials so far.
        """
        target = self._summarize(
            {}, self._measure(BASELINE, self._judged), self._measure(BASELINE, [TIMED])
        )
        chosen: dict[str, Any] = {}
        trials: list[Trial] = []
        of_risk = [name for name in OF_RISK if name in self.tried]
        for name in (name for name in self.tried if name not in of_risk):
            values = dict.fromkeys((getattr(self.pair.config, name), *self.tried[name]))
            own, *others = [self._run_trial(chosen | {name: value}) for value in values]
            trials += [own, *others]
            best = (
                _find_faster(own, others)
                if name in OF_SPEED
                else self._find_best(own, others, target)
            )
            chosen[name] = best.constants[name]
        if of_risk:
            own, *others = self._try_risk(chosen)
            best = self._find_best(own, others, target)
            trials += [own, *find_trade_off(others, target)]
            chosen |= {name: best.constants[name] for name in of_risk}
        return CalibrationResult(self._config(chosen), target, trials)

    def _run_trial(self, constants: Mapping[str, Any]) -> Trial:
        # Constants that change no token are left out of the judged runs, so that none is repeated.
        token_constants = {name: value for name, value in constants.items() if name not in OF_SPEED}
        judged = self._measure(_format_spec(self._rule, token_constants), self._judged)
        timed = self._measure(_format_spec(self._rule, constants), [TIMED])
        return self._summarize(constants, judged, timed)

    def _try_risk(self, chosen: Mapping[str, Any]) -> list[Trial]:
        """A trial for each set of constants of the risk, the pair's own first.

        The level of a request decides its whole reply as long as the risk is read once, which is
        so here whatever the pair has. So each level is decoded once, for all requests, and the
        bounds choose among the replies.
        """
        config = self._config(chosen)
        others = {name: value for name, value in chosen.items() if name not in OF_SPEED}
        if config.reading_bins:
            others["reading_bins"] = 0
        suites = list(dict.fromkeys([*self._judged, TIMED]))

        def decode(**constants: Any) -> dict[str, Sequence[Row]]:
            return self._measure(_format_spec(self._rule, others | constants), suites)

        alphas, lower, upper = (
            dict.fromkeys((getattr(config, name), *self.tried.get(name, ()))) for name in OF_RISK
        )
        unsure = decode(harmless_below=0.0, risky_above=1.0)
        risky = decode(harmless_below=0.0, risky_above=0.0)
        harmless = {
            alpha: decode(alpha_harmless=alpha, harmless_below=1.0, risky_above=1.0)
            for alpha in alphas
        }
        trials = []
        for values in product(alphas, lower, upper):
            constants = dict(chosen) | dict(zip(OF_RISK, values, strict=True))
            if constants["harmless_below"] > constants["risky_above"]:
                continue
            levels = {
                Level.HARMLESS: harmless[constants["alpha_harmless"]],
                Level.UNSURE: unsure,
                Level.RISKY: risky,
            }
            rows = choose_rows(levels, self._config(constants))
            trials.append(self._summarize(constants, rows, rows))
        return trials

    def _summarize(
        self,
        constants: Mapping[str, Any],
        judged: Mapping[str, Sequence[Row]],
        timed: Mapping[str, Sequence[Row]],
    ) -> Trial:
        attacked = [row for suite in self.attacks for row in judged[suite]]
        return Trial(
            constants,
            share_of(row.succeeded for row in attacked if not row.control),
            share_of(row.refused for row in attacked if row.control),
            share_of(is_lost(row) for suite in self.harmless for row in judged[suite]),
            median(row.statistics["tokens_per_second"] for row in timed[TIMED]),
        )

    def _find_best(self, own: Trial, others: Sequence[Trial], target: Trial) -> Trial:
        """The best trial: the first, which is the pair's own, in a tie."""

        def rank(trial: Trial) -> tuple[bool, float]:
            excess = trial.excess(target)
            fits = excess <= self.max_lost
            return not fits, trial.attack_success + (0 if fits else excess)

        return min((own, *others), key=rank)

    def _measure(self, defense: str, suites: Sequence[str]) -> dict[str, Sequence[Row]]:
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
        logs = prepare(matrix, self.log_dir, self.report).run(self.display)
        runs = read_logs([log.location for log in logs], "calibration").runs
        return {run.suite: run.rows for run in runs}

    @property
    def _judged(self) -> list[str]:
        return [*self.attacks, *self.harmless]

    @cached_property
    def tried(self) -> Mapping[str, Sequence[Any]]:
        """Values to try by constant."""
        if self.candidates is not None:
            return self.candidates
        fixed = OF_SPEED if self.pair.config.draft_tree else ()  # a tree says what is drafted
        return {
            name: values
            for name, values in CANDIDATES.items()
            if name in self._constants and name not in fixed
        }

    @cached_property
    def _constants(self) -> Sequence[str]:
        return list(find_rule(self._rule).config.model_fields)

    @cached_property
    def _rule(self) -> str:
        """The pair's own rule, whose constants are tried."""
        bare = self.arguments.get("no_adapter", False)
        adapter = None if bare else self.arguments.get("adapter", self.pair.adapter)
        return own_rule(reads_risk=reads_risk(adapter))

    def _config(self, constants: Mapping[str, Any]) -> RiskConfig:
        return self.pair.config.replace(**constants)


def _find_faster(own: Trial, others: Sequence[Trial]) -> Trial:
    fastest = max((own, *others), key=lambda trial: trial.tokens_per_second)
    return fastest if fastest.tokens_per_second > DRIFT * own.tokens_per_second else own


def _format_spec(rule: str, constants: Mapping[str, Any]) -> str:
    """A rule with these constants as a defense of a matrix; the constants are sorted by name.

    A constant of None is the pair's own value and is left out.
    """
    pairs = sorted((name, value) for name, value in constants.items() if value is not None)
    assignments = ",".join(f"{name}={show_constant(value)}" for name, value in pairs)
    return f"{rule}:{assignments}" if assignments else rule


def write_calibrated(spec: PairSpec, config: RiskConfig) -> Path:
    """Write a pair with calibrated constants among the user's pairs; it replaces the original.

    Raises:
        SafeDraftError: as ``calibrated_file``.
    """
    file = calibrated_file(spec.name)
    write_pair(spec.model_copy(update={"config": config}), file)
    return file
