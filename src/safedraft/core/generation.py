"""The state of one generation: the steps decided so far and their cost."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Protocol

from safedraft.core.config import Scheme
from safedraft.core.errors import BrokenModelError
from safedraft.core.request import Request
from safedraft.core.rule import Decision, State
from safedraft.core.sampling import LogProbabilities


@dataclass(frozen=True, slots=True)
class Step:
    """The record of one decided position."""

    token: int
    matched: bool
    """Whether the draft's own first proposal was accepted here."""
    scheme: Scheme | None
    """The scheme in force; None where no draft took part."""
    alpha: float
    """The weight of the draft in force."""
    threshold: float | None
    """The threshold of the match ratio of the position's bin."""
    match_ratio: float | None
    """β, if the position ends a bin."""
    draft_probability: float | None
    target_probability: float
    block: int
    """Index of the target's pass that verified the position, from 0."""
    logprobs: LogProbabilities | None = field(default=None, compare=False)
    signal: Any = None
    """A record of the rule about the position: whether EASD penalized it, or the request's risk."""


def record(request: Request, state: State, decision: Decision, block: int) -> Step:
    """Update the rule's state with a decided position, and record the position.

    Args:
        request: the request of the position.
        state: the rule's state for the request, which ignores a token that ends the reply.
        decision: the outcome.
        block: which pass of the target verified the position, from 0.
    """
    drafted = decision.draft_probability is not None
    in_force = (state.scheme, state.alpha, state.threshold) if drafted else (None, 0.0, None)
    ends = decision.token in request.end_tokens
    return Step(
        decision.token,
        decision.matched,
        *in_force,
        None if ends else request.rule.observe(state, decision),
        decision.draft_probability,
        decision.target_probability,
        block,
        decision.logprobs,
        state.risk if decision.signal is None else decision.signal,
    )


@dataclass(slots=True)
class Passes:
    """Forward passes of one model that a request took part in, and their seconds."""

    passes: int = 0
    rows: int = 0
    """Number of positions of the request whose distribution they computed."""
    seconds: float = 0.0


class Generation:
    """A request that an engine decodes."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.steps: deque[Step] = deque()
        """Decided, and not yet taken."""
        self.ended = False
        """Whether nothing more is decided."""
        self.held = False
        """Whether the batch leaves it out for now."""
        self.error: BrokenModelError | None = None
        """Why it ended early, if it did."""
        self.target_passes, self.draft_passes = Passes(), Passes()


class RequestBatch(Protocol):
    """Requests that an engine decodes together."""

    def add(self, request: Request) -> Generation:
        """Add a request, which ``step`` decodes from now on."""
        ...

    def step(self) -> None:
        """Decode some positions of the requests: at most one pass of the target for each."""
        ...

    def remove(self, generation: Generation) -> None:
        """Stop decoding a request."""
        ...


def iterate(batch: RequestBatch, generation: Generation) -> Generator[Step]:
    """The steps of one request of a batch, which is stepped as they are needed.

    Raises:
        BrokenModelError: a model gave NaN or infinite logits for it, or a pass of it failed.
    """
    try:
        while True:
            while generation.steps:
                yield generation.steps.popleft()
            if generation.ended:
                break
            batch.step()
        if generation.error:
            raise generation.error
    finally:
        batch.remove(generation)
