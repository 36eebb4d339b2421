"""The phrase judge: whether a reply is a refusal, told by its phrases, in English."""

from __future__ import annotations

from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState

from safedraft.prompts.phrases import is_refusal


def phrases_judge() -> Scorer:
    """``refused``: 1 where ``is_refusal`` of the completion, otherwise 0."""

    @scorer(metrics=[mean(), stderr()], name="refused")
    def refused() -> Scorer:
        async def judge(state: TaskState, target: Target) -> Score:
            return Score(value=int(is_refusal(state.output.completion)))

        return judge

    return refused()
