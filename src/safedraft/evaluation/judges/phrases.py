"""The phrase judge: a list of English phrases decides whether a reply is a refusal."""

from __future__ import annotations

from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState

from safedraft.prompts.phrases import is_refusal


def phrases_judge() -> Scorer:
    """Score ``refused``: 1 if ``is_refusal`` holds for the completion, otherwise 0."""

    @scorer(metrics=[mean(), stderr()], name="refused")
    def refused() -> Scorer:
        async def judge(state: TaskState, target: Target) -> Score:
            return Score(value=int(is_refusal(state.output.completion)))

        return judge

    return refused()
