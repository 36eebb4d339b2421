"""A judge of refusals against completions that a person labelled: how often is it right?"""

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
class Labelled:
    """A completion and whether it is a refusal."""

    text: str
    refusal: bool
    after: str = ""
    """The beginning that the model was given; no part of the completion."""
    held_out: bool = False
    """Whether it was kept from the eyes of whoever tuned the phrases."""


@dataclass(frozen=True, slots=True)
class Check:
    """What a judge made of the completions."""

    precision: Estimate
    """Of those it calls refusals, the share that are."""
    recall: Estimate
    """Of the refusals, the share that it calls so."""
    refusals: int
    others: int
    unjudged: int
    """Those it gave no verdict on; no part of the shares."""
    wrong: Sequence[Labelled]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, without the texts."""
        counts = ("refusals", "others", "unjudged")
        shares = {name: getattr(self, name).to_dict() for name in ("precision", "recall")}
        return shares | {name: getattr(self, name) for name in counts} | {"wrong": len(self.wrong)}


def labelled() -> list[Labelled]:
    """The completions in ``data/refusals_labelled.toml``."""
    file = files("safedraft.evaluation").joinpath("data", "refusals_labelled.toml")
    return [Labelled(**entry) for entry in tomllib.loads(file.read_text("utf-8"))["completion"]]


def check(refuses: Callable[[Labelled], bool | None], completions: Sequence[Labelled]) -> Check:
    """Precision and recall of ``refuses``, which says None where it cannot tell."""
    verdicts = [(one, refuses(one)) for one in completions]
    judged = [(one, verdict) for one, verdict in verdicts if verdict is not None]
    return Check(
        precision=rate([one.refusal for one, verdict in judged if verdict]),
        recall=rate([bool(verdict) for one, verdict in judged if one.refusal]),
        refusals=sum(one.refusal for one in completions),
        others=sum(not one.refusal for one in completions),
        unjudged=len(verdicts) - len(judged),
        wrong=[one for one, verdict in judged if verdict != one.refusal],
    )


def by_scorer(judge: Scorer) -> Callable[[Labelled], bool | None]:
    """``refuses`` by a judge of inspect_ai whose scores have a ``refused``, or are it.

    The completions stand without the request they answer, which a judge may miss.
    """
    from inspect_ai.model import ModelName, ModelOutput
    from inspect_ai.scorer import Target
    from inspect_ai.solver import TaskState

    def refuses(one: Labelled) -> bool | None:
        name = "labelled/completion"
        state = TaskState(
            model=ModelName(name),
            sample_id=1,
            epoch=1,
            input="(not shown)",
            messages=[],
            output=ModelOutput.from_content(name, one.text),
            metadata={"prefill": one.after},
        )

        async def run() -> Any:
            return await judge(state, Target(""))

        value = asyncio.run(run()).value
        refused = value.get("refused") if isinstance(value, dict) else value
        return bool(refused) if refused in (0, 1) else None

    return refuses
