"""The folder of an evaluation's logs: one run writes to it, and it holds one kind of settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log
from inspect_ai.model import Model

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.records import JUDGED_AGAIN, PAIR, find_differences


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make the folder of logs, and lock it against other runs."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SafeDraftError(f"--log-dir {folder}: {error.strerror}") from error
    try:
        with FileLock(folder / ".lock").acquire(timeout=0):
            yield
    except Timeout as error:
        raise SafeDraftError(f"another run is writing to {folder}: wait for it") from error


def remove_superseded(folder: Path, logs: Sequence[EvalLog]) -> None:
    """Delete logs of killed runs whose finished samples are in a later log."""
    latest = {log.eval.task_id: log.location for log in logs}
    for info in list_eval_logs(str(folder)):
        if info.task_id in latest and Path(info.name).name != Path(latest[info.task_id]).name:
            (folder / Path(info.name).name).unlink()


class Planned(NamedTuple):
    """The settings under which a run will log a suite under a defense."""

    settings: Mapping[str, Any]
    """Arguments of the task."""
    model: Model
    samples: int


def check_log_dir(
    folder: Path, planned: Mapping[tuple[str, Any], Planned], pair: Mapping[str, Any]
) -> None:
    """Refuse logs of the same defense and suite with other settings, which reports would mix.

    Args:
        folder: the folder of logs; it need not exist.
        planned: by the names of suite and defense.
        pair: the pair with its constants, as logs keep it.

    Raises:
        SafeDraftError: a log has other settings (the message names the first of them), or would get
            new samples with other judges.
    """
    if not folder.exists():
        return
    for info in list_eval_logs(str(folder)):
        spec = read_eval_log(info, header_only=True).eval
        key = (spec.task, spec.model_args.get("label", spec.model_args.get("defense")))
        if key not in planned:
            continue
        settings, model, samples = planned[key]
        metadata = spec.metadata or {}
        if metadata.get(JUDGED_AGAIN) and spec.dataset.samples != samples:
            raise SafeDraftError(
                f"{folder} holds {key[0]} of {key[1]} judged again by `safedraft score`, and new "
                "samples would have other judges: choose another --log-dir"
            )
        logged_pair = metadata.get(PAIR, pair)  # absent from logs of `inspect eval`
        for setting, logged, current in (
            *find_differences({"pair": spec.model}, {"pair": str(model)}),
            *find_differences(logged_pair, pair, model.model_args["defense"]),
            *find_differences(spec.model_args, model.model_args),
            *find_differences(spec.task_args, settings),
        ):
            raise SafeDraftError(
                f"{folder} holds {key[0]} of {key[1]} with {setting} {logged!r}, not {current!r}: "
                "choose another --log-dir"
            )
