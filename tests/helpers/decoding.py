"""Requests in one line, what came of them, and what the models computed for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from safedraft.core.config import Constants, SamplingParams
from safedraft.core.constraint import Constraint
from safedraft.core.decode import decode
from safedraft.core.generation import Step
from safedraft.core.request import Request
from safedraft.core.risk import Reading, RiskContext, RiskProbe
from safedraft.core.rule import Context, Rule, State
from safedraft.engines.scripted import Script, ScriptedEngine, ScriptedSession
from safedraft.rules.ssd import SSD

HEADER = (2, 1)
"""What ends a turn of the assistant and begins another one, where the risk is read."""


def request_of(
    rule: Rule | None = None,
    constants: Constants | dict[str, Any] | None = None,
    prompts: tuple[Sequence[int], Sequence[int]] = ((0,), (0,)),
    end: Collection[int] = (),
    refusals: Collection[int] = (),
    top_logprobs: int | None = None,
    probe: RiskProbe | None = None,
    question: Sequence[int] = (),
    constrain: Callable[[State], Constraint] | None = None,
    **sampling: Any,
) -> Request:
    """A request, with SSD where no rule is given; ``sampling`` are those parameters."""
    rule = rule or SSD()
    config = constants if isinstance(constants, Constants) else rule.config(**constants or {})
    return Request(
        *prompts,
        rule,
        config,
        SamplingParams(**sampling),
        frozenset(end),
        context=Context(
            refusal_tokens=frozenset(refusals),
            risk=read_by(probe, question) if probe else None,
        ),
        top_logprobs=top_logprobs,
        constrain=constrain,
    )


def read_by(probe: RiskProbe, question: Sequence[int] = ()) -> RiskContext:
    """What is needed to read the risk, the same of each model that the probe reads."""
    return RiskContext(probe, dict.fromkeys(probe.reads, Reading(HEADER, tuple(question))))


def start(request: Request) -> State:
    """The state of a new request under its rule."""
    return request.rule.start(request.config, request.context)


def decode_together(target: Script, draft: Script, requests: Sequence[Request]) -> list[list[Step]]:
    """The steps of each request, decoded in one batch."""
    replies: list[list[Step]] = [[] for _ in requests]
    for index, step in decode(ScriptedEngine(target, draft), requests):
        replies[index].append(step)
    return replies


def decode_one(target: Script, draft: Script, request: Request) -> list[Step]:
    """The steps of one request."""
    return decode_together(target, draft, [request])[0]


def tokens_of(steps: Sequence[Step]) -> list[int]:
    """The reply."""
    return [step.token for step in steps]


def shape(steps: Sequence[Step]) -> str:
    """Blocks parted by bars; ``x`` for a match, ``.`` for any other position."""
    text = ""
    for before, step in zip([None, *steps], steps, strict=False):
        bar = "|" if before is not None and before.block != step.block else ""
        text += bar + ("x" if step.matched else ".")
    return text


def computed(session: ScriptedSession) -> list[int]:
    """How many tokens each pass of a model was fed."""
    return [count for call, count in session.calls if call == "forward"]


def assert_no_token_twice(
    session: ScriptedSession, prompt: Sequence[int], reply: Sequence[int], per_pass: int
) -> None:
    """A cache holds the committed tokens, and every pass appended only what was missing.

    A token is computed again only where the one that stood at its position was taken back, and no
    pass after the first has more than ``per_pass`` tokens.
    """
    known = [*prompt, *reply]
    assert session.ids[: len(known)] == known[: len(session.ids)]
    taken_back = sum(count for call, count in session.calls if call == "rewind")
    assert sum(computed(session)) - taken_back == len(session.ids)
    assert computed(session)[0] >= len(prompt)
    assert all(count <= per_pass for count in computed(session)[1:])
