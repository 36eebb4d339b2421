"""What a judge is given, and what it says."""

from __future__ import annotations

import asyncio
from typing import Any

from inspect_ai.model import ModelName, ModelOutput
from inspect_ai.scorer import Score, Scorer, Target
from inspect_ai.solver import TaskState


def judged(judge: Scorer, completion: str, request: str = "Do it.", prefill: str = "") -> Score:
    state = TaskState(
        model=ModelName("mockllm/model"),
        sample_id=1,
        epoch=1,
        input=request,
        messages=[],
        output=ModelOutput.from_content("mockllm/model", completion),
        metadata={"record": {"request": request}, "prefill": prefill},
    )

    async def run() -> Any:
        return await judge(state, Target(""))

    score = asyncio.run(run())
    assert isinstance(score, Score)
    return score
