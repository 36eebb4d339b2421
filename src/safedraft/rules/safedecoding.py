"""SafeDecoding: both models decide how a reply begins, the target alone the rest.

Xu et al., arXiv 2402.08983. The draft stands for the paper's expert. At the first m positions the
sample space is always the intersection, also where the target's best token is not in it, and the
composite is floored and renormalized over it. Nothing is drafted ahead: one token in each pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safedraft.core.composite import Scores, Setting, composite, join
from safedraft.core.config import NoConstants, Scheme
from safedraft.core.rows import Rows
from safedraft.core.rule import AfterMatch, Context, Decision, State
from safedraft.rules.whole import score_vocabulary

FIRST_TOKENS = 2
"""m: number of positions that the draft takes part in."""
COMMON_TOKENS = 5
"""c: size of the intersection."""
ALPHA = 3.0
"""α: weight of the draft."""
FLOOR = 1e-8
"""Lowest score of a token of the sample space, before the scores are renormalized."""


@dataclass(frozen=True)
class SafeDecoding:
    """The constants are those of the paper; a configuration sets none of them."""

    name: str = "safedecoding"
    config: type[NoConstants] = NoConstants
    after_match: AfterMatch = "stop"

    def start(self, constants: NoConstants, context: Context) -> State:
        """Create a state in which both models decide the first position."""
        return _Beginning(Scheme.INTERSECTION, ALPHA, draft_limit=1)

    def scores(self, states: Sequence[State], rows: Rows) -> Scores:
        """Score with the floored composite at the first positions, and with P at all others."""
        parts = []
        for first in (True, False):
            chosen = [
                row for row, state in enumerate(states) if (state.scheme is not None) is first
            ]
            if chosen:
                score = _score_first if first else _score_rest
                parts.append((chosen, score(rows.select(chosen))))
        return join(parts, len(rows))

    def observe(self, state: State, decision: Decision) -> None:
        """Count the positions that both models have decided."""
        assert isinstance(state, _Beginning)
        state.decided += 1
        if state.decided == FIRST_TOKENS:
            state.scheme, state.alpha, state.draft_limit = None, 0.0, 0


@dataclass(slots=True)
class _Beginning(State):
    decided: int = 0


def _score_first(rows: Rows) -> Scores:
    # κ as large as the vocabulary: where the models share no best token, P must not replace F.
    setting = Setting(False, ALPHA, COMMON_TOKENS, rows.vocabulary)
    scores = composite(rows, [setting] * len(rows))
    values = scores.values
    return scores._replace(values=values.clamp(min=FLOOR).where(values.isfinite(), values))


def _score_rest(rows: Rows) -> Scores:
    return score_vocabulary(rows, [0.0] * len(rows))
