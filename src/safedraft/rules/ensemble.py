"""A fixed mixture of both models: the rule of Transformers' ``assistant_ensemble_weight``.

Speculative decoding that verifies against v = w P + (1 - w) q over the whole vocabulary, with no
sample space and no switch. As there, the bonus token after a block that was accepted throughout is
the target's own, so that v decides only drafted positions and a reply depends on where blocks end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from safedraft.core.composite import Scores
from safedraft.core.config import DraftingConfig
from safedraft.core.rows import Rows
from safedraft.core.rule import AfterMatch, Context, Decision, State
from safedraft.rules.whole import score_vocabulary

WEIGHT = 0.7


class EnsembleConfig(DraftingConfig):
    """The constants of the ensemble weight."""

    weight: Annotated[float, Field(gt=0, lt=1)] = WEIGHT
    """w: the target's share."""


@dataclass(frozen=True)
class EnsembleWeight:
    """Each drafted position is decided by v = w P + (1 - w) q."""

    name: str = "ensemble_weight"
    config: type[EnsembleConfig] = EnsembleConfig
    after_match: AfterMatch = "bonus"

    def start(self, constants: EnsembleConfig, context: Context) -> State:
        """Create a state whose α is the weight of the draft."""
        return State(alpha=1 - constants.weight)

    def scores(self, states: Sequence[State], rows: Rows) -> Scores:
        """Score with v."""
        return score_vocabulary(rows, [state.alpha for state in states])

    def observe(self, state: State, decision: Decision) -> None:
        """Do nothing: a decision changes nothing later."""
