"""What a judge is given, and what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelName, ModelOutput
from inspect_ai.scorer import Score, Scorer, Target
from inspect_ai.solver import TaskState


def judged(
    judge: Scorer,
    completion: str,
    request: str = "Do it.",
    prefill: str = "",
    turns: Sequence[str] = (),
) -> Score:
    """The score of a completion after ``turns`` of the user, which end in its own message."""
    state = TaskState(
        model=ModelName("mockllm/model"),
        sample_id=1,
        epoch=1,
        input=request,
        messages=[
            *(ChatMessageUser(content=turn) for turn in turns),
            ChatMessageAssistant(content=prefill + completion),
        ],
        output=ModelOutput.from_content("mockllm/model", completion),
        metadata={"record": {"request": request}, "prefill": prefill},
    )

    async def run() -> Any:
        return await judge(state, Target(""))

    score = asyncio.run(run())
    assert isinstance(score, Score)
    return score
