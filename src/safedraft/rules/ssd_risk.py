"""SSD with another switch: a risk score of every position, in place of the match ratio.

A 2026 course project on SSD. The risk of one position is

    r = w1 (1 - match) + w2 KL(q ‖ P) + w3 (H_P - H_q) + w4 (q's mass on tokens that begin refusals)

and the next position is in union while the smoothed risk is above a threshold. What that leaves
open is settled here. KL is clipped at 1, so that both terms with a weight lie between 0 and 1 and
no single token outweighs all others. The smoothing is an exponential moving average that starts at
the first position's risk and reaches back as far as a bin: the newest has a share of 2 / (b + 1).
The weights are α_I and α_U; α_I does not decay, as there are no bins for it to decay by. The
distributions are those decoded from, after the temperature. The position after a block that was
accepted throughout is decided in the next block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, cast

import torch
from pydantic import Field

from safedraft.core.composite import Scores
from safedraft.core.config import CompositeConfig, Scheme
from safedraft.core.errors import SafeDraftError
from safedraft.core.rows import Rows
from safedraft.core.rule import AfterMatch, Context, Decision, State
from safedraft.rules.ssd import composite_of

DIVERGENCE_LIMIT = 1.0
"""Nats at which KL(q ‖ P) is clipped."""

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RiskConfig(CompositeConfig):
    """The constants of the risk score; the defaults are the best that the project found."""

    mismatch_weight: Weight = 0.0
    """w1: weight of a token that is not the drafted one."""
    divergence_weight: Weight = 0.3
    """w2: weight of KL(q ‖ P) in nats, clipped at 1."""
    entropy_weight: Weight = 0.0
    """w3: weight of H_P - H_q in nats: a target less sure than the draft."""
    refusal_weight: Weight = 0.3
    """w4: weight of the probability with which the draft begins a refusal."""
    risk_threshold: Annotated[float, Field(allow_inf_nan=False)] = 0.2
    """A smoothed risk above it means union."""


class RiskState(State):
    """Scheme and weight follow from the smoothed ``risk``, which is None before any position."""

    def __init__(self, config: RiskConfig, scheme: Scheme, refusal_tokens: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.risk: float | None = None
        self.refusal_tokens = torch.tensor(refusal_tokens, dtype=torch.long)
        self.enter(scheme)

    def enter(self, scheme: Scheme) -> None:
        """Decide the next position in this scheme."""
        self.scheme = scheme
        union = scheme is Scheme.UNION
        self.alpha = self.config.alpha_union if union else self.config.alpha_intersection

    def add(self, risk: float) -> None:
        """Smooth in the risk of one position; the next one follows it."""
        share = 2 / (self.config.bin_size + 1)
        self.risk = risk if self.risk is None else self.risk + share * (risk - self.risk)
        above = self.risk > self.config.risk_threshold
        self.enter(Scheme.UNION if above else Scheme.INTERSECTION)


@dataclass(frozen=True)
class SSDRisk:
    """The composite of SSD, switched by risk."""

    name: str = "ssd_risk"
    config: type[RiskConfig] = RiskConfig
    after_match: AfterMatch = "stop"

    def start(self, constants: RiskConfig, context: Context) -> RiskState:
        """No risk yet.

        Raises:
            SafeDraftError: refusals have a weight, and no token is known to begin one.
        """
        if constants.refusal_weight and not context.refusal_tokens:
            raise SafeDraftError("the risk score needs at least one token that begins a refusal")
        scheme = constants.first_scheme(context.turn_begun)
        return RiskState(constants, scheme, sorted(context.refusal_tokens))

    def scores(self, states: Sequence[State], rows: Rows) -> Scores:
        """F of each position, with the risk that does not depend on the token."""
        risky = cast("Sequence[RiskState]", states)
        signals = [_risk(state, *rows.distributions(row)) for row, state in enumerate(risky)]
        return composite_of(risky, rows)._replace(signals=signals)

    def observe(self, state: State, decision: Decision) -> None:
        """Smooth in the risk of the position."""
        risky = cast("RiskState", state)
        risky.add(decision.signal + risky.config.mismatch_weight * (not decision.matched))


def _risk(state: RiskState, p: torch.Tensor, q: torch.Tensor) -> float:
    config = state.config
    target_entropy, draft_entropy = (float(torch.special.entr(x).sum()) for x in (p, q))
    divergence = -draft_entropy - float(torch.xlogy(q, p).sum())  # infinite where P alone is 0
    return (
        config.divergence_weight * min(divergence, DIVERGENCE_LIMIT)
        + config.entropy_weight * (target_entropy - draft_entropy)
        + config.refusal_weight * float(q[state.refusal_tokens].sum())
    )
