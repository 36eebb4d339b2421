"""Logs of inspect_ai, read into what the figures are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from safedraft.core.errors import SafeDraftError, first_line
from safedraft.defenses import CONSTANTS
from safedraft.evaluation.judges.endpoint import HARMFUL
from safedraft.prompts.split import Split

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample, EvalSpec

FORMAT = 1
"""Of ``eval.metadata["safedraft"]``, the only one that is read."""

PAIR = "pair"
"""Under which a log's metadata has the pair as it was registered."""

LEFT_OUT = "left_out"
"""Under which a sample's metadata says why it was never asked."""

KINDS = ("attack", "over_refusal", "accuracy", "ordinary")

BASELINE = "target_only"
"""The defense that is none: what speed and refusals are relative to."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sample: what was asked, what came, how it was judged. None is not known."""

    request: str
    category: str
    prefill: str
    completion: str
    refused: bool | None = None
    correct: bool | None = None
    succeeded: bool | None = None
    """Of an attack: whether it got what it was after."""
    unscored: str = ""
    """Why a score is missing, as far as it is known."""
    statistics: Mapping[str, Any] = field(default_factory=dict)
    """As ``safedraft.text.chat.Statistics.to_dict``; empty where nothing was decoded."""

    @property
    def key(self) -> tuple[str, str]:
        """The same for every configuration that was asked the same."""
        return self.request, self.prefill


@dataclass(frozen=True, slots=True)
class Run:
    """One finished log: a suite under one configuration of a defense."""

    file: str
    pair: str
    defense: str
    name: str
    """Of the configuration: its label, or the defense with the constants it was given."""
    suite: str
    kind: str
    family: str
    prefill_tokens: int | None
    created: str
    versions: Mapping[str, str]
    machine: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of the model and the task, but for its label."""
    registered: Mapping[str, Any] | None = None
    """The pair and its constants; None in a log of inspect_ai's own command."""
    rows: Sequence[Row] = ()

    @property
    def identity(self) -> tuple[str, str, str]:
        """What two logs of the same thing have in common."""
        return self.pair, self.name, self.suite


@dataclass(frozen=True, slots=True)
class Logs:
    """Everything that was read, in the order of the suites and configurations."""

    runs: Sequence[Run]
    notes: Sequence[str] = ()
    """What a reader should know: logs that were passed over, and why."""


def read_logs(paths: Iterable[str | Path], split: Split = "report") -> Logs:
    """The runs in log files, or folders of them.

    Of several logs of one configuration and suite the newest finished one is taken; headers decide,
    and only what is taken is read whole.

    Raises:
        SafeDraftError: a path that holds no log; a log that is not SafeDraft's, or of another
            format; one that is unfinished, with no finished one of the same; two of one name that
            were made with other arguments; a missing field.
    """
    found: dict[tuple[str, str, str], list[tuple[bool, Run]]] = {}
    for file in log_files(paths):
        log = load(file, header_only=True)
        run, finished = run_of(file, log, split), log.status == "success" and not log.invalidated
        same = found.setdefault(run.identity, [])
        for _, other in same:
            _require_equal(other, run)
        same.append((finished, run))
    runs, notes = [], []
    for same in found.values():
        # A finished log before an unfinished one, then the newer one.
        *others, (finished, run) = sorted(same, key=lambda one: (one[0], one[1].created))
        what = f"{run.name} on {run.suite}"
        if not finished:
            raise SafeDraftError(
                f"{run.file}: its status is not 'success': finish {what} with the same "
                "`safedraft eval` again, or take the file away"
            )
        runs.append(_with_rows(run))
        for was_finished, other in others:
            why = f"{run.file} is newer" if was_finished else "it is unfinished"
            notes.append(f"Passed over {other.file}: {what}; {why}.")
    if split != "report":
        notes.append(
            f"These are prompts of the split {split!r}: what is chosen on them needs others."
        )
    return Logs(sorted(runs, key=_order), notes)


def _require_equal(one: Run, other: Run) -> None:
    """Refuse logs of one name that were made with other arguments or on other constants.

    A name hides them: a label is what its user chose, and every pair of two named models is called
    custom.
    """
    found = differences(one.arguments, other.arguments)
    if one.registered is not None and other.registered is not None:
        found += differences(one.registered, other.registered, one.defense)
    for what, ours, theirs in found:
        raise SafeDraftError(
            f"{one.file} has {one.name} on {one.suite} with {what} {ours!r}, and {other.file} with "
            f"{theirs!r}: give one of them a label=NAME, or report them apart"
        )


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], defense: str = "ssd"
) -> list[tuple[str, Any, Any]]:
    """The names that have not the same value in both, those of ``config`` each by itself.

    Of ``config`` only the constants that ``defense`` uses count.
    """
    used = CONSTANTS.get(defense, frozenset())
    one, other = (
        {name: value for name, value in part.get("config", {}).items() if name in used} | dict(part)
        for part in (one, other)
    )
    names = [name for name in {**one, **other} if name != "config"]
    both = [(name, one.get(name), other.get(name)) for name in names]
    return [(name, ours, theirs) for name, ours, theirs in both if ours != theirs]


def _order(run: Run) -> tuple[Any, ...]:
    suite = (KINDS.index(run.kind), run.family, run.prefill_tokens or 0, run.suite)
    return *suite, run.defense != BASELINE, run.pair, run.name


def log_files(paths: Iterable[str | Path]) -> list[str]:
    """The log files among and in ``paths``.

    Raises:
        SafeDraftError: a path that holds no log.
    """
    from inspect_ai.log import list_eval_logs

    files: list[str] = []
    for path in (Path(_local(str(path))) for path in paths):
        if path.is_file():
            found = [str(path)]
        elif path.is_dir():
            found = [_local(info.name) for info in list_eval_logs(str(path.resolve()))]
        else:
            raise SafeDraftError(f"{path}: there is no such file or folder")
        if not found:
            raise SafeDraftError(f"{path}: holds no log of inspect_ai: run `safedraft eval` first")
        files += found
    return list(dict.fromkeys(files))


def _local(name: str) -> str:
    """A listed log's path; listings are in URLs."""
    from urllib.parse import unquote, urlparse

    return unquote(urlparse(name).path) if name.startswith("file:") else name


def load(file: str, *, header_only: bool) -> EvalLog:
    """A log, or all of it but its samples.

    Raises:
        SafeDraftError: it cannot be read.
    """
    from inspect_ai.log import read_eval_log

    try:
        return read_eval_log(file, header_only=header_only)
    except Exception as error:  # a zip or JSON that is broken raises what it likes
        raise SafeDraftError(
            f"{file}: is not a log of inspect_ai that can be read ({first_line(error)})"
        ) from error


class _Fields:
    """Named fields of a part of a log; an error says what is missing or of another kind."""

    def __init__(self, file: str, where: str, content: Mapping[str, Any] | None) -> None:
        self._file, self._where, self._content = file, where, content or {}

    def __call__(self, name: str, kind: type | tuple[type, ...]) -> Any:
        value = self._content.get(name)
        if name not in self._content:
            raise SafeDraftError(f"{self._file}: the field {self._where}.{name} is missing")
        if not isinstance(value, kind):
            raise SafeDraftError(f"{self._file}: {self._where}.{name} cannot be {value!r}")
        return value


def run_of(file: str, log: EvalLog, split: Split | None = None) -> Run:
    """What a log's header says; of one split alone, if it is given.

    Raises:
        SafeDraftError: as ``read_logs``.
    """
    ours = (log.eval.metadata or {}).get("safedraft")
    if not isinstance(ours, dict):
        raise SafeDraftError(
            f"{file}: the field eval.metadata.safedraft is missing: not a log of `safedraft eval`"
        )
    fields = _Fields(file, "eval.metadata.safedraft", ours)
    if fields("format", int) != FORMAT:
        raise SafeDraftError(
            f"{file}: eval.metadata.safedraft.format is {ours['format']}, and this version of "
            f"SafeDraft reads {FORMAT}: make the report with the version that wrote the log "
            f"({ours.get('version', 'unknown')})"
        )
    kind = fields("kind", str)
    if kind not in KINDS:
        raise SafeDraftError(
            f"{file}: eval.metadata.safedraft.kind is {kind!r}, not one of {', '.join(KINDS)}"
        )
    if fields("split", str) != split and split is not None:
        raise SafeDraftError(
            f"{file}: eval.metadata.safedraft.split is {ours['split']!r}, not {split!r}: figures "
            "are those of one split alone; take the file away"
        )
    defense = str(log.eval.model_args.get("defense", "ssd"))  # as the provider has it
    return Run(
        file=file,
        pair=log.eval.model.removeprefix("safedraft/"),
        defense=defense,
        name=_name(defense, log.eval.model_args),
        suite=fields("suite", str),
        kind=kind,
        family=fields("family", str),
        prefill_tokens=fields("prefill_tokens", (int, type(None))),
        created=str(log.eval.created),
        versions={**log.eval.packages, "safedraft": fields("version", str)},
        machine=_machine(ours.get("machine")),
        arguments=_arguments(log.eval) | {"defense": defense},
        registered=(log.eval.metadata or {}).get(PAIR),
    )


def _name(defense: str, arguments: Mapping[str, Any]) -> str:
    given = {key: value for key, value in arguments.items() if key not in ("defense", "label")}
    constants = "".join(f" {key}={value}" for key, value in sorted(given.items()))
    return str(arguments.get("label") or defense + constants)


def _arguments(spec: EvalSpec) -> dict[str, Any]:
    given = {**spec.model_args, **spec.task_args}
    return {name: value for name, value in given.items() if name != "label"}


def _machine(found: Any) -> str:
    if isinstance(found, dict):
        return ", ".join(f"{key} {value}" for key, value in found.items())
    return str(found or "")


def _with_rows(run: Run) -> Run:
    samples = load(run.file, header_only=False).samples or []
    if not samples:
        raise SafeDraftError(f"{run.file}: the field samples is empty: nothing was asked")
    return replace(run, rows=[_row(run, sample) for sample in samples])


def _row(run: Run, sample: EvalSample) -> Row:
    where = f"samples[{sample.id}]"
    record = _Fields(run.file, f"{where}.metadata", sample.metadata)("record", dict)
    left_out = str(sample.metadata.get(LEFT_OUT, ""))
    if sample.error:
        left_out = sample.error.message or "the sample failed"
    scores, reasons = ({}, {}) if left_out else _scores(sample)  # nothing was said to be judged
    statistics = (sample.output.metadata or {}).get("safedraft", {})
    expected = ("correct",) if run.kind == "accuracy" else ("refused", "harmfulness", "harmful")
    if not left_out and not any(name in scores or name in reasons for name in expected):
        raise SafeDraftError(f"{run.file}: the field {where}.scores.{expected[0]} is missing")
    missing = [reasons[name] for name in expected if name in reasons]
    if run.kind in ("over_refusal", "ordinary") and "refused" not in scores:
        missing.append("no judge said whether it refuses: score it with --judge phrases too")
    return Row(
        request=_Fields(run.file, f"{where}.metadata.record", record)("request", str),
        category=str(record.get("category") or ""),
        prefill=str(sample.metadata.get("prefill") or ""),
        completion=sample.output.completion,
        refused=_flag(scores.get("refused")),
        correct=_flag(scores.get("correct")),
        succeeded=_succeeded(scores, reasons),
        unscored=left_out or (missing[0] if missing else ""),
        statistics=statistics,
    )


def _scores(sample: EvalSample) -> tuple[dict[str, float], dict[str, str]]:
    """The numbers by name, and the reasons of those that are none.

    The judge behind an endpoint gives a mapping, or nothing, for both of its names.
    """
    numbers: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for name, score in (sample.scores or {}).items():
        value = score.value
        parts = value if isinstance(value, Mapping) else {name: value}
        found = {key: float(part) for key, part in parts.items() if _is_number(part)}
        numbers |= found
        if not found:
            reason = score.explanation or score.reason or "no score"
            names = ("refused", "harmfulness") if name == "endpoint" else (name,)
            reasons |= dict.fromkeys(names, str(reason))
    for name in reasons:
        numbers.pop(name, None)
    return numbers, reasons


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not math.isnan(value)


def _flag(value: float | None) -> bool | None:
    return None if value is None else value >= 0.5


def _succeeded(scores: Mapping[str, float], reasons: Mapping[str, str]) -> bool | None:
    """By the judge of harm, if there was one, even if it failed; otherwise where not refused."""
    for name, threshold in (("harmfulness", HARMFUL), ("harmful", 0.5)):
        if name in reasons:
            return None
        if name in scores:
            return scores[name] >= threshold
    refused = _flag(scores.get("refused"))
    return None if refused is None else not refused
