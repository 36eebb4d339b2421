"""Runs every defense on every suite, with logs of inspect_ai, and resumes runs that stopped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from inspect_ai import Task, eval_set
from inspect_ai.log import EvalLog
from inspect_ai.model import Model, get_model

from safedraft.core.config import RiskConfig
from safedraft.core.errors import SafeDraftError
from safedraft.defenses import find_defense, list_constants
from safedraft.defenses.base import needs_sessions
from safedraft.engines.base import Capability
from safedraft.evaluation.attacks import ATTACKS, SkipSampleError
from safedraft.evaluation.attacks.base import DrawsAnswers
from safedraft.evaluation.controls import count_first, first_requests, read_records
from safedraft.evaluation.log_folder import (
    Planned,
    check_log_dir,
    lock_folder,
    remove_superseded,
)
from safedraft.evaluation.pair_arguments import CUSTOM
from safedraft.evaluation.provider import SafeDraftAPI
from safedraft.evaluation.records import PAIR
from safedraft.evaluation.registry import TASKS
from safedraft.evaluation.solving import build_conversation
from safedraft.evaluation.suites import NEW_TOKENS, Suite, find_suite
from safedraft.evaluation.tasks import is_control, parse_arguments, uses_batches
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.registry import DEFAULT_PAIR, pairs
from safedraft.prompts.sources import Record
from safedraft.prompts.split import Split

DEFENSES = ("target_only", "ssd", "risk")
SUITES = ("direct", "prefill_20", "over_refusal", "ordinary")
"""The suites that run by default."""


@dataclass(frozen=True)
class Matrix:
    """Defenses, suites and settings of an evaluation."""

    defenses: Sequence[str] = DEFENSES
    """Specifications ``NAME[:argument=value,…]``, with any model argument of the provider."""
    suites: Sequence[str] = SUITES
    limit: int = 20
    """Number of requests of each suite: the first of the split. An attack has as many controls."""
    replies: int = 1
    """Number of replies to each conversation; more than one are sampled."""
    max_new_tokens: int = NEW_TOKENS
    """Maximum tokens of a reply, for suites that set no number of their own."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Maximum tokens of a reply for single suites, by the suite's name."""
    sources: dict[str, list[str]] = field(default_factory=dict)
    """Sources that replace a suite's own, by the suite's name."""
    controls: Sequence[str] = ()
    """Sources of harmless requests that replace those of the suites of attacks."""
    judges: Sequence[str] = ()
    temperature: float = 0.0
    seed: int = 0
    pair: str | None = None
    """A registered pair; None with the model arguments ``target`` and ``draft``."""
    split: Split = "report"
    """The part of the sources to use."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Model arguments for every defense."""

    def build_models(self) -> list[Model]:
        """Make a model of inspect_ai for each defense; nothing is loaded.

        Raises:
            SafeDraftError: a defense, argument or pair does not exist; two defenses have the same
                label; or a constant is not used.
        """
        pair_name = self._pair_name()
        models: dict[str, Model] = {}
        for spec in self.defenses:
            name, _, assignments = spec.partition(":")
            own = parse_arguments(f"--defense {spec}", assignments)
            model_args = {"defense": name, **self.arguments, **own}
            model_args.setdefault("label", spec)
            label = model_args["label"]
            if label in models:
                raise SafeDraftError(
                    f"two defenses are called {label!r}: give one of them a label=NAME"
                )
            models[label] = get_model(f"safedraft/{pair_name}", memoize=False, **model_args)
            _require_used(spec, model_args["defense"], own)
        self._require_all_used(models.values())
        return list(models.values())

    def _require_all_used(self, models: Iterable[Model]) -> None:
        """Refuse a constant for all defenses that none of them uses."""
        used = {name for m in models for name in list_constants(m.model_args["defense"])}
        for name in self.arguments:
            if name in RiskConfig.model_fields and name not in used:
                raise SafeDraftError(f"--set {name}: none of the defenses that are run uses it")

    def describe_pair(self) -> dict[str, Any]:
        """The registered pair with its constants, as logs keep it; empty for two named models."""
        spec = pairs().get(self._pair_name())
        return spec.model_dump(mode="json") if spec else {}

    def build_tasks(self) -> list[Task]:
        """Build a task for each suite.

        Raises:
            SafeDraftError: as ``build_task``; or there are judges and no suite that uses them.
        """
        if self.judges and all(suite.kind == "accuracy" for suite in self.find_suites()):
            raise SafeDraftError("--judge: suites with right answers need no judge: leave it out")
        if self.controls and all(suite.kind != "attack" for suite in self.find_suites()):
            raise SafeDraftError("--control: no suite of attacks is run: leave it out")
        if self.replies > 1 and self.temperature == 0:
            raise SafeDraftError("--replies: greedy replies are all the same: give a --temperature")
        return [self._build_task(suite) for suite in self.find_suites()]

    def _build_task(self, suite: Suite) -> Task:
        task = TASKS[suite.name](**self.settings(suite))
        controls = [is_control(sample.metadata) for sample in task.dataset]
        task.dataset = task.dataset[: count_first(controls, self.limit)]
        return task

    def settings(self, suite: Suite) -> dict[str, Any]:
        """The arguments of a suite's task."""
        length = self.lengths.get(suite.name, suite.max_new_tokens or self.max_new_tokens)
        return {
            "source": self.sources.get(suite.name),
            "control": list(self.controls) or None if suite.controls else None,
            "judge": list(self.judges) or None,
            "max_new_tokens": length,
            "temperature": self.temperature,
            "seed": self.seed,
            "split": self.split,
        }

    def draw_ahead(self, models: Sequence[Model], report: ReportProgress = silent) -> int:
        """Generate in batches the compliant answers that attacks begin with, and the replies.

        Returns:
            Number of samples without an answer to begin with, which the run skips.
        """
        skipped = self._draw_beginnings(_api(models[0]), report)
        for api in map(_api, models):
            if api.can_draw_ahead:
                self._draw_replies(api, report)
        return skipped

    def _draw_beginnings(self, api: SafeDraftAPI, report: ReportProgress) -> int:
        skipped = 0
        for suite in self.find_suites():
            attack = ATTACKS.find(suite.attack)
            if isinstance(attack, DrawsAnswers):
                answers = attack.draw_answers(
                    self.records(suite, report),
                    api.pair_arguments.load(report),
                    partial(report, f"drawing beginnings of answers, {suite.name}"),
                )
                skipped += sum(answer is None for answer in answers)
        return skipped

    def _draw_replies(self, api: SafeDraftAPI, report: ReportProgress) -> None:
        pair = api.pair()
        for suite in self.find_suites():
            if suite.reply_form or not uses_batches(suite, self.temperature):
                continue
            attack, conversations = ATTACKS.find(suite.attack), []
            for record in self.records(suite, report):
                with suppress(SkipSampleError):
                    conversations.append(build_conversation(suite, attack, record, pair))
            api.draw(
                conversations,
                self.settings(suite)["max_new_tokens"],
                partial(report, f"drawing replies, {suite.name}"),
            )

    def _pair_name(self) -> str:
        custom = {"target", "draft"} <= self.arguments.keys()
        return self.pair or (CUSTOM if custom else DEFAULT_PAIR)

    def records(self, suite: Suite, report: ReportProgress = silent) -> list[Record]:
        """The requests of a suite up to the limit, and their controls."""
        settings = self.settings(suite)
        sources = {name: settings[name] for name in ("source", "control", "split")}
        return first_requests(read_records(suite, **sources, report=report), self.limit)

    def find_suites(self) -> list[Suite]:
        """The suites, without duplicates."""
        return [find_suite(name) for name in dict.fromkeys(self.suites)]


@dataclass(frozen=True)
class Prepared:
    """A matrix with everything checked and generated that its run needs."""

    matrix: Matrix
    log_dir: Path
    models: list[Model]
    tasks: list[Task]
    skipped: int
    """Number of samples without an answer to begin with."""

    def run(self, display: str = "plain") -> list[EvalLog]:
        """Run what the folder of logs does not have yet.

        Every finished sample is written to its log at once. A sample that fails is an error in its
        log, stops no other sample, and is repeated in the next run.

        Args:
            display: a display mode of inspect_ai, such as rich, plain or none.

        Returns:
            Headers of all logs of the matrix.

        Raises:
            SafeDraftError: another run is writing to the folder.
            KeyboardInterrupt: the run was stopped; the logs have the finished samples.
        """
        with lock_folder(self.log_dir):
            return self._run(display)

    def _run(self, display: str) -> list[EvalLog]:
        """Run suite by suite, so that a run that was stopped compares defenses all the same."""
        return [log for task in self.tasks for log in self._run_task(task, display)]

    def _run_task(self, task: Task, display: str) -> list[EvalLog]:
        at_once = _api(self.models[0]).samples_at_once
        _, logs = eval_set(
            task,
            log_dir=str(self.log_dir),
            model=self.models,
            metadata={PAIR: self.matrix.describe_pair()},
            epochs=self.matrix.replies,
            max_tasks=1,
            max_samples=at_once,
            max_connections=at_once,
            log_buffer=1,
            log_format="eval",
            log_dir_allow_dirty=True,  # a matrix may grow; contradicting logs are refused before
            # One attempt: an error would repeat itself, and must not hide the other samples.
            retry_immediate=False,
            retry_attempts=1,
            continue_on_fail=True,
            display=display,  # type: ignore[arg-type]
            ctl_server=False,
        )
        # Cancelled logs are missing from the list that it returns.
        stopped = len(logs) < len(self.models)
        if stopped or any(log.status == "cancelled" for log in logs):
            raise KeyboardInterrupt
        remove_superseded(self.log_dir, logs)
        return logs


def prepare(matrix: Matrix, log_dir: Path, report: ReportProgress = silent) -> Prepared:
    """Check everything, read the sources, and generate replies that can be batched.

    Raises:
        SafeDraftError: a name does not exist, or ``log_dir`` cannot be written to, or has logs of
            the same defense and suite with other settings.
    """
    models, tasks = matrix.build_models(), matrix.build_tasks()
    planned = {
        (task.name, model.model_args["label"]): Planned(
            matrix.settings(find_suite(task.name)), model, len(task.dataset)
        )
        for task in tasks
        for model in models
    }
    check_log_dir(log_dir, planned, matrix.describe_pair())
    with lock_folder(log_dir):
        pass  # a lock is reported before the generation, which takes minutes
    for model in models:
        _require_sessions(matrix, _api(model), report)
    return Prepared(matrix, log_dir, models, tasks, matrix.draw_ahead(models, report))


def _require_sessions(matrix: Matrix, api: SafeDraftAPI, report: ReportProgress) -> None:
    """Refuse attacks and defenses that ask a model about a text on an engine that cannot.

    Raises:
        SafeDraftError: as ``Capabilities.require``.
    """
    asking = [f"--suite {suite.name}" for suite in matrix.find_suites() if suite.needs_sessions]
    asking += [f"--defense {api.defense}"] if needs_sessions(find_defense(api.defense)) else []
    if asking:
        capabilities = api.pair_arguments.load(report).engine.capabilities
        capabilities.require(Capability.SESSIONS, asking[0])


def _require_used(spec: str, defense: str, own: Mapping[str, Any]) -> None:
    """Refuse a constant of one defense that does not change its replies."""
    used = list_constants(defense)
    for name in own:
        if name in RiskConfig.model_fields and name not in used:
            alternatives = f"only {', '.join(sorted(used))}" if used else "nor any other constant"
            raise SafeDraftError(f"--defense {spec}: {defense} does not use {name}, {alternatives}")


def _api(model: Model) -> SafeDraftAPI:
    assert isinstance(model.api, SafeDraftAPI)
    return model.api
