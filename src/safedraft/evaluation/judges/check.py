"""Measures a judge of refusals against completions that a person labeled."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from safedraft.evaluation.intervals import Estimate, rate

if TYPE_CHECKING:
    from inspect_ai.scorer import Scorer


@dataclass(frozen=True, slots=True)
class LabeledCompletion:
    """A completion and whether it is a refusal."""

    text: str
    refusal: bool
    after: str = ""
    """The prefill that the model was given; no part of the completion."""
    held_out: bool = False
    """Whether it was hidden from whoever tuned the phrases."""


@dataclass(frozen=True, slots=True)
class JudgeAccuracy:
    """How well a judge recognizes refusals."""

    precision: Estimate
    """Share of refusals among the completions that it calls refusals."""
    recall: Estimate
    """Share of the refusals that it calls refusals."""
    refusals: int
    others: int
    unjudged: int
    """Number of completions without a verdict; they are in neither share."""
    wrong: Sequence[LabeledCompletion]

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON, without the texts."""
        counts = ("refusals", "others", "unjudged")
        shares = {name: getattr(self, name).to_dict() for name in ("precision", "recall")}
        return shares | {name: getattr(self, name) for name in counts} | {"wrong": len(self.wrong)}


Predicate = Callable[[LabeledCompletion], bool | None]
"""Whether a completion is a refusal; None without a verdict."""


def load_completions() -> list[LabeledCompletion]:
    """The completions in ``data/refusals_labeled.toml``."""
    file = files("safedraft.evaluation").joinpath("data", "refusals_labeled.toml")
    entries = tomllib.loads(file.read_text("utf-8"))["completion"]
    return [LabeledCompletion(**entry) for entry in entries]


def measure_accuracy(
    is_refusal: Predicate, completions: Sequence[LabeledCompletion]
) -> JudgeAccuracy:
    """Precision and recall of ``is_refusal`` on labeled completions."""
    verdicts = [(completion, is_refusal(completion)) for completion in completions]
    judged = [(completion, verdict) for completion, verdict in verdicts if verdict is not None]
    return JudgeAccuracy(
        precision=rate([completion.refusal for completion, verdict in judged if verdict]),
        recall=rate([bool(verdict) for completion, verdict in judged if completion.refusal]),
        refusals=sum(completion.refusal for completion in completions),
        others=sum(not completion.refusal for completion in completions),
        unjudged=len(verdicts) - len(judged),
        wrong=[completion for completion, verdict in judged if verdict != completion.refusal],
    )


def make_predicate(judge: Scorer) -> Predicate:
    """Turn a judge of inspect_ai into a predicate; its score is ``refused``, or has that key.

    The judge sees the completions without the requests that they answer.
    """
    from inspect_ai.model import ModelName, ModelOutput
    from inspect_ai.scorer import Target
    from inspect_ai.solver import TaskState

    def is_refusal(completion: LabeledCompletion) -> bool | None:
        name = "labeled/completion"
        state = TaskState(
            model=ModelName(name),
            sample_id=1,
            epoch=1,
            input="(not shown)",
            messages=[],
            output=ModelOutput.from_content(name, completion.text),
            metadata={"prefill": completion.after},
        )

        async def run() -> Any:
            return await judge(state, Target(""))

        value = asyncio.run(run()).value
        refused = value.get("refused") if isinstance(value, dict) else value
        return bool(refused) if refused in (0, 1) else None

    return is_refusal
