"""No defense: the target alone, one token in each pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safedraft.core.composite import Scores
from safedraft.core.config import NoConstants
from safedraft.core.rows import Rows
from safedraft.core.rule import AfterMatch, Context, Decision, State
from safedraft.rules.whole import score_vocabulary


@dataclass(frozen=True)
class TargetOnly:
    """The target decides each position alone.

    An engine that drafts for every request does so here as well; no token depends on it.
    """

    name: str = "target_only"
    config: type[NoConstants] = NoConstants
    after_match: AfterMatch = "bonus"

    def start(self, constants: NoConstants, context: Context) -> State:
        """Create a state under which nothing is drafted."""
        return State(draft_limit=0)

    def scores(self, states: Sequence[State], rows: Rows) -> Scores:
        """Score with P, the target's distribution."""
        return score_vocabulary(rows, [0.0] * len(rows))

    def observe(self, state: State, decision: Decision) -> None:
        """Do nothing: a decision changes nothing later."""
