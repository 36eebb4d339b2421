"""Entropy-Aware Speculative Decoding, alone and under the guard of SSD.

EASD (arXiv 2512.23765): where both models are unsure and their best tokens overlap, the draft's
best token x* is taken out of the target's distribution, and the position is chosen from the rest:

    penalized if H(P) > τ_H and H(q) > τ_H and |Top_N(P) ∩ Top_N(q)| ≥ τ_O N

Entropies are in nats, over the whole vocabulary, at a temperature of 1 for any request.
x* is q's best token and not the sampled one, so that every position has one distribution, a
function of P and q alone. The position after a full block waits for a proposal of the draft,
because with a bonus token the distribution would depend on where blocks end. τ_H = 2 is the value
of the paper; N and τ_O are not published, and their values here are this project's choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, cast

import torch
from pydantic import Field

from safedraft.core.composite import Scores
from safedraft.core.config import DraftingConfig, Positive, Scheme, Share, SSDConfig
from safedraft.core.rows import Place, Rows, rank
from safedraft.core.rule import AfterMatch, Context, Decision, State
from safedraft.core.switch import Switch
from safedraft.rules.ssd import composite_of
from safedraft.rules.whole import remove_tokens, score_vocabulary


class EASDConfig(DraftingConfig):
    """The constants of the penalty."""

    entropy_threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0
    """τ_H: entropy in nats that both models must exceed (2 in the paper)."""
    overlap_tokens: Positive = 10
    """N: how many best tokens of each model are compared (not published)."""
    overlap_threshold: Share = 0.5
    """τ_O: share of them that both models must have in common (not published)."""


class GuardedEASDConfig(SSDConfig, EASDConfig):
    """The constants of SSD and of the penalty."""


@dataclass(slots=True)
class EASDState(State):
    """The constants of one request."""

    constants: EASDConfig = field(kw_only=True)


@dataclass(frozen=True)
class EASD:
    """Decides from P, without the draft's best token where both models are unsure."""

    name: str = "easd"
    config: type[EASDConfig] = EASDConfig
    after_match: AfterMatch = "carry"

    def start(self, constants: EASDConfig, context: Context) -> State:
        """Keep the request's constants."""
        return EASDState(constants=constants)

    def scores(self, states: Sequence[State], rows: Rows) -> Scores:
        """Score with P, without x* at penalized positions, which the signals mark."""
        penalized = [
            _is_penalized(cast("EASDState", state).constants, rows, row)
            for row, state in enumerate(states)
        ]
        scores = score_vocabulary(_without_best_drafts(rows, penalized), [0.0] * len(rows))
        return scores._replace(signals=penalized)

    def observe(self, state: State, decision: Decision) -> None:
        """Do nothing: a decision changes nothing later."""


class GuardedState(Switch):
    """SSD's switch, which also knows how refusals begin."""

    def __init__(self, config: GuardedEASDConfig, scheme: Scheme, refusals: frozenset[int]) -> None:
        super().__init__(config, scheme)
        self.constants = config
        self.refusal_tokens = refusals

    @property
    def may_penalize(self) -> bool:
        """Whether the position to come may be penalized: in intersection, after the first bin."""
        return self.scheme is Scheme.INTERSECTION and self.decided >= self.config.bin_size


@dataclass(frozen=True)
class GuardedEASD:
    """SSD, with EASD's penalty on F where it cannot take a refusal back.

    At the first tokens of a reply to a harmful request both models are often unsure and overlap,
    and x* begins the refusal. So nothing is penalized in union, in the first bin, or where x*
    begins a refusal. The switch sees the match that the unpenalized F would have given, because a
    penalty is not evidence of harm.
    """

    name: str = "ssd_easd"
    config: type[GuardedEASDConfig] = GuardedEASDConfig
    after_match: AfterMatch = "carry"

    def start(self, constants: GuardedEASDConfig, context: Context) -> GuardedState:
        """Create the request's switch in the scheme of its first position."""
        scheme = constants.first_scheme(context.turn_begun)
        return GuardedState(constants, scheme, context.refusal_tokens)

    def scores(self, states: Sequence[State], rows: Rows) -> Scores:
        """Score with F, without x* at penalized positions; the switch sees the unchanged F."""
        guarded = cast("Sequence[GuardedState]", states)
        scores = composite_of(guarded, rows)
        best = [place.best() for place in rows.places[1]]
        penalized = [
            state.may_penalize
            and best[row] not in state.refusal_tokens
            and _has_another(scores, row, best[row])
            and _is_penalized(state.constants, rows, row)
            for row, state in enumerate(guarded)
        ]
        if not any(penalized):
            return scores._replace(signals=penalized)
        removed = [token if wanted else None for token, wanted in zip(best, penalized, strict=True)]
        return remove_tokens(scores, removed)._replace(evidence=scores, signals=penalized)

    def observe(self, state: State, decision: Decision) -> float | None:
        """Hand the unpenalized match to the switch."""
        return cast("GuardedState", state).observe(decision.matched)


def _is_penalized(constants: EASDConfig, rows: Rows, row: int) -> bool:
    rows = rows.select([row])
    count = min(constants.overlap_tokens, int(rows.possible[0]))
    while count > int(rows.known[0]):
        rows = rows.widen()
    target, draft = (side[0, :count] for side in (rows.target_tokens, rows.draft_tokens))
    common = int((target[:, None] == draft[None, :]).sum())
    if common < constants.overlap_threshold * count:
        return False
    return min(rows.entropies(0)) > constants.entropy_threshold


def _without_best_drafts(rows: Rows, wanted: Sequence[bool]) -> Rows:
    """Return the rows with x* removed from the target's logits where ``wanted`` is true.

    x* is taken out of the logits, not of the probabilities: at a low temperature these can be 0 for
    all other tokens, and would not say which of them is the most likely.
    """
    target, draft = rows.places
    changed = [
        _without(place, other.best()) if is_wanted else place
        for place, other, is_wanted in zip(target, draft, wanted, strict=True)
    ]
    return Rows(changed, draft, rows.needs_whole)


def _without(place: Place, token: int) -> Place:
    ranked, row = place
    logits = ranked.logits[row].clone()
    logits[token] = -torch.inf
    return Place(rank(logits[None], [float(ranked.temperatures[row])], ranked.tokens.shape[-1]), 0)


def _has_another(scores: Scores, row: int, token: int) -> bool:
    """Whether a token other than ``token`` can be chosen at a position."""
    others = (scores.tokens[row] != token) & (scores.values[row] > 0)
    return bool(others.any())
