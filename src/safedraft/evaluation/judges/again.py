"""Scores finished logs with other judges; the replies stay as they are."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.logs import load_log, read_header
from safedraft.evaluation.records import JUDGED_AGAIN

if TYPE_CHECKING:
    from inspect_ai.scorer import Scorer


def judge_again(file: str, judges: Mapping[str, Scorer], output: Path | None = None) -> bool:
    """Replace the scores in a log, in place or as a file of the same name in ``output``.

    Args:
        file: the log.
        judges: by the names that the log then has for them.
        output: a folder; None replaces the log.

    Logs of tasks with one right answer are not judged, only copied to ``output``; for them the
    function returns False.

    Raises:
        SafeDraftError: the log was not written by SafeDraft, or is unfinished.
    """
    from inspect_ai import score
    from inspect_ai.log import write_eval_log
    from inspect_ai.model import get_model

    log = load_log(file, header_only=False)
    if read_header(file, log).kind == "accuracy":
        if output:
            shutil.copy(file, output)
        return False
    if log.status != "success":
        raise SafeDraftError(f"{file}: its status is {log.status!r}: finish it before judging it")
    # No scorer uses the log's model, and so it is not loaded.
    judged = score(
        log, list(judges.values()), action="overwrite", model=get_model("none/none"), display="none"
    )
    metadata = dict(judged.eval.metadata or {})
    metadata["safedraft"] = {**metadata["safedraft"], "judges": list(judges)}
    judged.eval.metadata = {**metadata, JUDGED_AGAIN: True}
    write_eval_log(judged, str(output / Path(file).name) if output else file)
    return True
