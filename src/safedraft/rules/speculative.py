"""Plain speculative decoding: the target's own text, faster, with the target's own weaknesses.

Leviathan, Kalman and Matias, arXiv 2211.17192, Algorithm 1. Every reply has exactly
the distribution of the target. The token after a block that was accepted throughout is a bonus,
which the target draws alone. SSD must never do this; here it is harmless, since the draft has no
influence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safedraft.core.composite import Scores
from safedraft.core.config import DraftingConfig
from safedraft.core.rows import Rows
from safedraft.core.rule import AfterMatch, Context, Decision, State
from safedraft.rules.whole import score_vocabulary


@dataclass(frozen=True)
class Speculative:
    """The target decides each position: by its best token, or by accept-or-correct against P."""

    name: str = "speculative"
    config: type[DraftingConfig] = DraftingConfig
    after_match: AfterMatch = "bonus"

    def start(self, constants: DraftingConfig, context: Context) -> State:
        """Create a state that does not change."""
        return State()

    def scores(self, states: Sequence[State], rows: Rows) -> Scores:
        """Score with P, the target's distribution."""
        return score_vocabulary(rows, [0.0] * len(rows))

    def observe(self, state: State, decision: Decision) -> None:
        """Do nothing: a decision changes nothing later."""
