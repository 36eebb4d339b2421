"""Tasks whose replies are checked by programs, to measure the cost of a defense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from anyio import to_thread
from inspect_ai.scorer import Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState

from safedraft.core.plugins import unknown_name
from safedraft.evaluation.usefulness.human_eval import check_human_eval
from safedraft.evaluation.usefulness.instructions import check_instructions
from safedraft.evaluation.usefulness.number import check_number

Check = Callable[[str, str, bool], Score]
"""Scores a reply with 1 or 0, by the sample's target, and by whether the reply was truncated."""

_CHECKS: Mapping[str, Check] = {
    "number": check_number,
    "human_eval": check_human_eval,
    "instructions": check_instructions,
}


@scorer(metrics=[accuracy(), stderr()], name="correct")
def correct(check: str = "number") -> Scorer:
    """Score 1 if a reply passes a check, otherwise 0.

    Args:
        check: a name in ``CHECKS``.

    Raises:
        SafeDraftError: there is no check of that name.
    """
    if check not in _CHECKS:
        raise unknown_name("check", check, _CHECKS)

    async def score(state: TaskState, target: Target) -> Score:
        truncated = state.output.stop_reason == "max_tokens"
        reply = state.output.completion
        return await to_thread.run_sync(_CHECKS[check], reply, target.text, truncated)

    return score


CHECKS: Mapping[str, Callable[[], Scorer]] = {name: partial(correct, name) for name in _CHECKS}
"""Makes the scorer of a check, by the check's name; all of them give the score ``correct``."""
