"""Judging finished logs again, by other judges: what was said stays, the scores are replaced."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.report.read import load, run_of

if TYPE_CHECKING:
    from inspect_ai.scorer import Scorer

JUDGED_AGAIN = "judged_again"
"""Under which a log's metadata says that its scores are no longer those of its own judges."""


def judge_again(file: str, judges: Sequence[Scorer], output: Path | None = None) -> bool:
    """Replace the scores in a log, in place or as a file of the same name in ``output``.

    Suites of tasks with one right answer are not judged, only copied to ``output``: returns False.

    Raises:
        SafeDraftError: the log is not SafeDraft's, or not finished.
    """
    from inspect_ai import score
    from inspect_ai.log import write_eval_log
    from inspect_ai.model import get_model

    log = load(file, header_only=False)
    if run_of(file, log).kind == "accuracy":
        if output:
            shutil.copy(file, output)
        return False
    if log.status != "success":
        raise SafeDraftError(f"{file}: its status is {log.status!r}: finish it before judging it")
    # The scorers ask no model of the log's; without one, none is loaded.
    judged = score(
        log, list(judges), action="overwrite", model=get_model("none/none"), display="none"
    )
    judged.eval.metadata = {**(judged.eval.metadata or {}), JUDGED_AGAIN: True}
    write_eval_log(judged, str(output / Path(file).name) if output else file)
    return True
