"""Every defense on every suite, kept as logs of inspect_ai; a run goes on where one stopped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from inspect_ai import Task, eval_set
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log
from inspect_ai.model import Model, get_model

from safedraft.core.config import SSDConfig
from safedraft.core.errors import SafeDraftError
from safedraft.defenses import CONSTANTS
from safedraft.evaluation.attacks import LeftOut
from safedraft.evaluation.attacks.answers import compliant_answers
from safedraft.evaluation.judges.again import JUDGED_AGAIN
from safedraft.evaluation.provider import CUSTOM, SafeDraftAPI
from safedraft.evaluation.registry import TASKS
from safedraft.evaluation.report.read import PAIR, differences
from safedraft.evaluation.suites import NEW_TOKENS, Suite, find_suite
from safedraft.evaluation.tasks import arguments, drawn, sent, suite_records
from safedraft.models.progress import Report, silent
from safedraft.models.registry import DEFAULT_PAIR, pairs
from safedraft.prompts.sources import Record
from safedraft.prompts.split import Split

DEFENSES = ("target_only", "ensemble_weight", "ssd")
SUITES = ("direct", "prefill_20", "over_refusal", "ordinary")
"""What is run when nothing is asked for."""


@dataclass(frozen=True)
class Matrix:
    """Which defenses on which suites, with what."""

    defenses: Sequence[str] = DEFENSES
    """Each as ``NAME[:argument=value,…]``, with any model argument of the provider."""
    suites: Sequence[str] = SUITES
    limit: int = 20
    """Prompts a suite, the first of its report split."""
    max_new_tokens: int = NEW_TOKENS
    """For suites that have no length of their own."""
    lengths: dict[str, int] = field(default_factory=dict)
    """New tokens of single suites, by name."""
    sources: dict[str, list[str]] = field(default_factory=dict)
    """In place of a suite's own source, by the suite's name."""
    judges: Sequence[str] = ()
    temperature: float = 0.0
    seed: int = 0
    pair: str | None = None
    """A registered pair; None with the model arguments ``target`` and ``draft``."""
    split: Split = "report"
    """Which part of the sources is asked."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Model arguments of every defense."""

    def models(self) -> list[Model]:
        """One model of inspect_ai for each defense; nothing is loaded.

        Raises:
            SafeDraftError: a defense, argument or pair that does not exist, or one given twice; a
                constant that is not used.
        """
        named = self._named()
        models: dict[str, Model] = {}
        for spec in self.defenses:
            name, _, own = spec.partition(":")
            given = arguments(f"--defense {spec}", own)
            chosen = {"defense": name, **self.arguments, **given}
            chosen.setdefault("label", spec)
            if chosen["label"] in models:
                raise SafeDraftError(
                    f"two defenses are called {chosen['label']!r}: give one of them a label=NAME"
                )
            models[chosen["label"]] = get_model(f"safedraft/{named}", memoize=False, **chosen)
            _require_used(spec, chosen["defense"], given)
        self._require_all_used(models.values())
        return list(models.values())

    def _require_all_used(self, models: Iterable[Model]) -> None:
        """A constant for all defenses need not be used by all, but by one."""
        used = {
            name for m in models for name in CONSTANTS.get(m.model_args["defense"], frozenset())
        }
        for name in self.arguments:
            if name in SSDConfig.model_fields and name not in used:
                raise SafeDraftError(f"--set {name}: none of the defenses that are run uses it")

    def registered(self) -> dict[str, Any]:
        """The pair as it is registered now, constants and all; logs keep it."""
        known = pairs().get(self._named())
        return known.model_dump(mode="json") if known else {}

    def tasks(self) -> list[Task]:
        """One task for each suite.

        Raises:
            SafeDraftError: as ``suite_task``; or judges, and no suite that they would judge.
        """
        if self.judges and all(suite.kind == "accuracy" for suite in self._suites()):
            raise SafeDraftError("--judge: right answers are found without one: leave it out")
        return [TASKS[suite.name](**self.settings(suite)) for suite in self._suites()]

    def settings(self, suite: Suite) -> dict[str, Any]:
        """The arguments of a suite's task."""
        length = self.lengths.get(suite.name, suite.max_new_tokens or self.max_new_tokens)
        return {
            "source": self.sources.get(suite.name),
            "judge": list(self.judges) or None,
            "max_new_tokens": length,
            "temperature": self.temperature,
            "seed": self.seed,
            "split": self.split,
        }

    def draw_ahead(self, models: Sequence[Model], report: Report = silent) -> int:
        """Draw, many at once, the compliant answers that attacks begin with and drawn replies.

        Returns:
            How many prompts have no compliant answer, and will be left out.
        """
        left_out = self._draw_beginnings(_api(models[0]), report)
        for api in map(_api, models):
            if api.can_be_drawn:
                self._draw_replies(api, report)
        return left_out

    def _draw_beginnings(self, api: SafeDraftAPI, report: Report) -> int:
        suites = [suite for suite in self._suites() if suite.needs_answers]
        wanted = {
            record.id: record
            for suite in suites
            for record in self._records(suite, report)[: self.limit]
        }
        if not wanted:
            return 0
        answers = compliant_answers(
            list(wanted.values()),
            api.pair_arguments.load(report),
            lambda done, total: report("drawing beginnings of answers", done, total),
        )
        return answers.count(None)

    def _draw_replies(self, api: SafeDraftAPI, report: Report) -> None:
        pair = api.pair()
        for suite in (suite for suite in self._suites() if drawn(suite, self.temperature)):
            conversations = []
            for record in self._records(suite, report)[: self.limit]:
                with suppress(LeftOut):
                    conversations.append(sent(suite, record, pair))
            api.draw(
                conversations,
                self.settings(suite)["max_new_tokens"],
                partial(report, f"drawing replies, {suite.name}"),
            )

    def _named(self) -> str:
        custom = {"target", "draft"} <= self.arguments.keys()
        return self.pair or (CUSTOM if custom else DEFAULT_PAIR)

    def _records(self, suite: Suite, report: Report) -> list[Record]:
        return suite_records(suite, self.sources.get(suite.name), self.split, report)

    def _suites(self) -> list[Suite]:
        return [find_suite(name) for name in dict.fromkeys(self.suites)]


@dataclass(frozen=True)
class Prepared:
    """A matrix of which everything is known and drawn that its runs need."""

    matrix: Matrix
    log_dir: Path
    models: list[Model]
    tasks: list[Task]
    left_out: int
    """Prompts to which no compliant answer is known."""

    def run(self, display: str = "plain") -> list[EvalLog]:
        """Run what the folder of logs does not hold yet.

        Every sample is written down when it is finished. One that fails is an error in its log and
        stops no other; it is tried again the next time.

        Args:
            display: as inspect_ai names it: rich, plain, none…

        Returns:
            The headers of all logs of the matrix.

        Raises:
            SafeDraftError: another run is writing there.
            KeyboardInterrupt: stopped; the logs hold what was finished.
        """
        with _alone(self.log_dir):
            return self._run(display)

    def _run(self, display: str) -> list[EvalLog]:
        _, logs = eval_set(
            self.tasks,
            log_dir=str(self.log_dir),
            model=self.models,
            metadata={PAIR: self.matrix.registered()},
            limit=self.matrix.limit,
            max_tasks=1,
            max_samples=1,
            log_buffer=1,
            log_format="eval",
            log_dir_allow_dirty=True,  # a matrix may grow; what contradicts it is refused before
            # One attempt: what fails once fails again, and a failed sample must not hide the rest.
            retry_immediate=False,
            retry_attempts=1,
            continue_on_fail=True,
            display=display,  # type: ignore[arg-type]
            ctl_server=False,
        )
        # What was cancelled is missing from what it returns.
        stopped = len(logs) < len(self.tasks) * len(self.models)
        if stopped or any(log.status == "cancelled" for log in logs):
            raise KeyboardInterrupt
        _remove_superseded(self.log_dir, logs)
        return logs


def prepare(matrix: Matrix, log_dir: Path, report: Report = silent) -> Prepared:
    """Check everything, read the sources, and draw the answers that attacks begin with.

    Raises:
        SafeDraftError: something asked for does not exist, or ``log_dir`` cannot be written to, or
            holds the same defense and suite with other settings.
    """
    models, tasks = matrix.models(), matrix.tasks()
    _check_log_dir(matrix, models, log_dir)
    with _alone(log_dir):
        pass  # told before anything is drawn, which takes minutes
    return Prepared(matrix, log_dir, models, tasks, matrix.draw_ahead(models, report))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder of logs, and keep other runs out of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SafeDraftError(f"--log-dir {folder}: {error.strerror}") from error
    try:
        with FileLock(folder / ".lock").acquire(timeout=0):
            yield
    except Timeout as error:
        raise SafeDraftError(f"another run is writing to {folder}: wait for it") from error


def _require_used(spec: str, defense: str, given: Mapping[str, Any]) -> None:
    """Refuse a defense's own constant that changes nothing of what it says."""
    used = CONSTANTS.get(defense, frozenset())
    for name in given:
        if name in SSDConfig.model_fields and name not in used:
            those = f"only {', '.join(sorted(used))}" if used else "nor any other constant"
            raise SafeDraftError(f"--defense {spec}: {defense} does not use {name}, {those}")


def _api(model: Model) -> SafeDraftAPI:
    assert isinstance(model.api, SafeDraftAPI)
    return model.api


def _remove_superseded(folder: Path, logs: Sequence[EvalLog]) -> None:
    """Logs that a killed run left behind, and whose finished samples are in a later one."""
    latest = {log.eval.task_id: log.location for log in logs}
    for info in list_eval_logs(str(folder)):
        if info.task_id in latest and Path(info.name).name != Path(latest[info.task_id]).name:
            (folder / Path(info.name).name).unlink()


def _check_log_dir(matrix: Matrix, models: Sequence[Model], folder: Path) -> None:
    """Refuse logs of the same defense and suite with other settings: reports would mix them."""
    if not folder.exists():
        return
    planned = {
        (suite.name, model.model_args["label"]): (matrix.settings(suite), model)
        for suite in matrix._suites()
        for model in models
    }
    now = matrix.registered()
    for info in list_eval_logs(str(folder)):
        held = read_eval_log(info, header_only=True).eval
        key = (held.task, held.model_args.get("label", held.model_args.get("defense")))
        if key not in planned:
            continue
        settings, model = planned[key]
        if (held.metadata or {}).get(JUDGED_AGAIN) and held.config.limit != matrix.limit:
            raise SafeDraftError(
                f"{folder} holds {key[0]} of {key[1]} judged again by `safedraft score`, and new "
                "samples would have other judges: choose another --log-dir"
            )
        was = (held.metadata or {}).get(PAIR, now)  # not in a log of inspect_ai's own command
        for what, theirs, ours in (
            *differences({"pair": held.model}, {"pair": str(model)}),
            *differences(was, now, model.model_args["defense"]),
            *differences(held.model_args, model.model_args),
            *differences(held.task_args, settings),
        ):
            raise SafeDraftError(
                f"{folder} holds {key[0]} of {key[1]} with {what} {theirs!r}, not {ours!r}: "
                "choose another --log-dir"
            )
