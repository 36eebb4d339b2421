"""A rule scores the tokens of each position, and updates its state with the decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from safedraft.core.composite import Scores
from safedraft.core.config import Constants, Scheme
from safedraft.core.risk import RiskContext
from safedraft.core.rows import Rows
from safedraft.core.sampling import LogProbabilities

AfterMatch = Literal["carry", "bonus", "stop"]


@dataclass(slots=True)
class State:
    """The state of a rule in one request; rules with further state subclass it."""

    scheme: Scheme | None = None
    """Scheme of the next position, as the trace reports it."""
    alpha: float = 0.0
    """α of the next position, as the trace reports it."""
    threshold: float | None = None
    """The threshold of the match ratio β of the current bin."""
    draft_limit: int | None = None
    """Maximum number of drafts in the next block where the rule has one of its own; with 0 the
    target decides alone."""
    harmless: bool = False
    """Whether the rule takes the request to be harmless."""
    follows_target: bool = False
    """Whether the best token of F is that of the target, whatever the draft says, so that greedy
    decoding needs no draft at the next position."""
    reads_risk_at: int | None = None
    """Position before which the risk of the request is read; None: the rule does not use it."""
    reading: RiskContext | None = None
    """The probe of the risk and its readings; None: the rule does not use it."""
    risk: float | None = None
    """The largest risk that was read, which the trace reports."""

    def assess(self, risk: float) -> None:
        """Use the risk that was read before the position ``reads_risk_at``."""
        self.risk = max(risk, self.risk or 0.0)


class Context(NamedTuple):
    """The facts about a request that a rule may use besides its own constants."""

    turn_begun: bool | None = None
    """Whether the prompts end inside the assistant's turn; None if only token ids are known."""
    refusal_tokens: frozenset[int] = frozenset()
    """Tokens that begin a refusal."""
    risk: RiskContext | None = None
    """The probe of the request's risk and its readings; None if the draft has no probe."""


NO_CONTEXT = Context()


class Decision(NamedTuple):
    """The outcome of one position."""

    token: int
    followed: bool
    """Whether the token is the drafted one, so that the drafts after it stay valid."""
    matched: bool
    """Whether the rule counts the position as a match of the draft's own first proposal: the
    evidence for its switch. A rule can take it from other scores than the token."""
    draft_probability: float | None
    target_probability: float
    logprobs: LogProbabilities | None = None
    signal: Any = None
    """A record of the rule's ``scores`` about the position."""


class Rule(Protocol):
    """A kind of rule. It holds no request's state, so that many requests share it."""

    @property
    def name(self) -> str:
        """Name by which another process finds the rule."""
        ...

    @property
    def config(self) -> type[Constants]:
        """The class of its constants."""
        ...

    @property
    def after_match(self) -> AfterMatch:
        """The way the position after a block is decided if all drafts were accepted.

        The target's distribution is carried over until the draft proposes a token there ("carry"),
        the target decides alone ("bonus"), or the next block decides it ("stop").
        """
        ...

    def start(self, constants: Any, context: Context) -> State:
        """Make the state of a new request; ``constants`` are of the class ``config``.

        Raises:
            SafeDraftError: the rule cannot start with these.
        """
        ...

    def scores(self, states: Sequence[State], rows: Rows) -> Scores:
        """Score one position of each of n requests; ``rows`` holds both models' predictions."""
        ...

    def observe(self, state: State, decision: Decision) -> float | None:
        """Update the state with a decision; return the match ratio β if the position ends a bin."""
        ...
