"""Choosing the constants of a pair, on prompts that no report uses.

One constant after the other, each at the best found for those before it: every trial is SSD on the
calibration split of attacks and of harmless suites, run and kept like any other evaluation. A
trial's cost is its attack success plus what it loses of harmless prompts, by a refusal or a wrong
result, beyond what the target alone loses. Constants that change no token are tried on ordinary
prompts, for speed alone; all others go by cost alone. The pair's own value stays unless another is
better, and in speed by more than a machine's drift between two trials.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from safedraft.core.config import OF_SPEED, SSDConfig
from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.matrix import Matrix, prepare
from safedraft.evaluation.report.read import BASELINE, Row, read_logs
from safedraft.evaluation.suites import NEW_TOKENS, find_suite
from safedraft.models.progress import Report, silent
from safedraft.models.registry import PairSpec, calibrated_file, find_pair

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
"""What is tried of each constant beside the pair's own value, in this order."""

TIMED = "ordinary"
"""The suite by which speed is judged."""

DRIFT = 1.05
"""Times as fast that a trial may look which came at another moment."""


@dataclass(frozen=True)
class Trial:
    """One set of constants and what came of it."""

    constants: Mapping[str, Any]
    attack_success: float
    lost: float
    """Of harmless prompts: refused, or answered wrong where there is a right answer."""
    tokens_per_second: float
    """Median over the ordinary prompts."""

    def cost(self, lost_by_target: float) -> float:
        """Attack success plus harmless prompts that are lost and that the target would answer."""
        return self.attack_success + max(self.lost - lost_by_target, 0.0)


@dataclass(frozen=True)
class Calibration:
    """A sweep over the constants of one registered pair."""

    pair: PairSpec
    log_dir: Path
    """Where the trials are kept: a sweep goes on where one stopped."""
    candidates: Mapping[str, Sequence[Any]] = field(default_factory=lambda: CANDIDATES)
    attacks: Sequence[str] = ("prefill_20",)
    harmless: Sequence[str] = ("over_refusal", TIMED)
    limit: int = 20
    max_new_tokens: int = NEW_TOKENS
    sources: dict[str, list[str]] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    """Model arguments of every trial."""

    def __post_init__(self) -> None:
        """Refuse what cannot be tried before anything is loaded."""
        for name, values in self.candidates.items():
            if name not in SSDConfig.model_fields:
                known = ", ".join(SSDConfig.model_fields)
                raise SafeDraftError(f"{name!r} is no constant of the method; those are {known}")
            for value in values:
                self._config({name: value})
        for kind, suites in (("attack", self.attacks), ("harmless suite", self.harmless)):
            for suite in map(find_suite, suites):
                if (suite.kind == "attack") != (kind == "attack"):
                    raise SafeDraftError(f"{suite.name} is no {kind} that constants are tried on")

    def run(self, report: Report = silent, display: str = "plain") -> tuple[SSDConfig, list[Trial]]:
        """Sweep, and return the chosen constants and every trial.

        Raises:
            SafeDraftError: as ``matrix.prepare``; or a trial that did not finish.
            KeyboardInterrupt: stopped; the trials so far are kept.
        """
        rows = self._measure(BASELINE, self.harmless, report, display)
        by_target = _share(_lost(row) for suite in self.harmless for row in rows[suite])
        chosen: dict[str, Any] = {}
        trials: list[Trial] = []
        for name, values in self.candidates.items():
            own, *others = [
                self._trial(chosen | {name: value}, report, display)
                for value in dict.fromkeys((getattr(self.pair.config, name), *values))
            ]
            trials += [own, *others]
            best = _faster(own, others) if name in OF_SPEED else _cheapest(own, others, by_target)
            chosen[name] = best.constants[name]
        return self._config(chosen), trials

    def _trial(self, constants: Mapping[str, Any], report: Report, display: str) -> Trial:
        # What changes no token is left out where tokens are judged, so that nothing is run twice.
        telling = {name: value for name, value in constants.items() if name not in OF_SPEED}
        judged = self._measure(_spec(telling), [*self.attacks, *self.harmless], report, display)
        timed = self._measure(_spec(constants), [TIMED], report, display)
        return Trial(
            constants,
            _share(row.succeeded for suite in self.attacks for row in judged[suite]),
            _share(_lost(row) for suite in self.harmless for row in judged[suite]),
            median(row.statistics["tokens_per_second"] for row in timed[TIMED]),
        )

    def _measure(
        self, defense: str, suites: Sequence[str], report: Report, display: str
    ) -> dict[str, Sequence[Row]]:
        """The rows of one configuration by suite, from the logs where they are complete."""
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

    def _config(self, constants: Mapping[str, Any]) -> SSDConfig:
        return SSDConfig.model_validate(self.pair.config.model_dump() | dict(constants))


def _cheapest(own: Trial, others: Sequence[Trial], lost_by_target: float) -> Trial:
    return min((own, *others), key=lambda trial: trial.cost(lost_by_target))  # own in a tie


def _faster(own: Trial, others: Sequence[Trial]) -> Trial:
    fastest = max((own, *others), key=lambda trial: trial.tokens_per_second)
    return fastest if fastest.tokens_per_second > DRIFT * own.tokens_per_second else own


def _spec(constants: Mapping[str, Any]) -> str:
    """How the matrix is told to run SSD with these constants, always in the same order.

    None is only ever the pair's own value, and has no spelling.
    """
    told = sorted((name, value) for name, value in constants.items() if value is not None)
    given = ",".join(f"{name}={value}" for name, value in told)
    return f"ssd:{given}" if given else "ssd"


def _lost(row: Row) -> bool | None:
    return row.refused if row.correct is None else not row.correct


def _share(flags: Iterable[bool | None]) -> float:
    """Of those that are known.

    Raises:
        SafeDraftError: none is.
    """
    known = [flag for flag in flags if flag is not None]
    if not known:
        raise SafeDraftError("a trial has no sample that was judged: look into its log")
    return sum(known) / len(known)


def write_pair(spec: PairSpec, config: SSDConfig) -> Path:
    """Make ``config`` the pair's own: a file among the user's pairs, which wins over all others.

    Raises:
        SafeDraftError: another calibrated file of the user's defines the pair and wins over it.
    """
    import tomli_w

    file = calibrated_file(spec.name)
    entry = spec.model_copy(update={"config": config}).model_dump(
        mode="json", exclude={"name"}, exclude_none=True
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".new")
    unfinished.write_text(tomli_w.dumps({spec.name: entry}), encoding="utf-8")
    unfinished.replace(file)
    if find_pair(spec.name).config != config:
        raise SafeDraftError(
            f"{file} is written, but another file in {file.parent} defines {spec.name!r} as well "
            "and wins: take one of them away"
        )
    return file
