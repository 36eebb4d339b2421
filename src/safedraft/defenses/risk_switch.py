"""SSD with another switch: a risk score that looks at every position, in place of the match ratio.

A 2026 course project on SSD. The risk of one position is

    r = w1 (1 - match) + w2 KL(q ‖ P) + w3 (H_P - H_q) + w4 (q's mass on tokens that begin refusals)

and the next position is in union while the smoothed risk is above a threshold. What that leaves
open is settled here. KL is clipped at 1, so that both terms with a weight lie between 0 and 1 and
no single token outweighs all others. The smoothing is an exponential moving average that starts at
the first position's risk and reaches back as far as a bin: the newest has a share of 2 / (b + 1).
The strengths are α_I and α_U; α_I does not decay, as there are no bins for it to decay by. The
distributions are those decoded from, after the temperature.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safedraft.core.composite import composite
from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.core.decode import Decoder
from safedraft.core.errors import SafeDraftError
from safedraft.defenses.base import decoded
from safedraft.defenses.blockwise import Rule, blockwise
from safedraft.prompts.refusals import refusal_tokens
from safedraft.text.chat import Message, Reply

if TYPE_CHECKING:
    from safedraft.pair import Pair

DIVERGENCE_LIMIT = 1.0
"""Nats at which KL(q ‖ P) is clipped."""
THRESHOLD = 0.2
"""Smoothed risk above it means union."""


@dataclass(frozen=True)
class RiskWeights:
    """How much each sign of risk counts; the defaults are the best that the project found."""

    mismatch: float = 0.0
    """w1: of a token that is not the drafted one."""
    divergence: float = 0.3
    """w2: of KL(q ‖ P) in nats, clipped at 1."""
    entropy: float = 0.0
    """w3: of H_P - H_q in nats, a target less sure than the draft."""
    refusal: float = 0.3
    """w4: of the probability with which the draft begins a refusal."""


class RiskSwitch(Rule):
    """The composite of SSD; scheme and strength follow from the smoothed risk of one request.

    ``risk`` is the smoothed risk, None before the first position.
    """

    def __init__(
        self,
        config: SSDConfig,
        refusals: Sequence[int],
        weights: RiskWeights,
        threshold: float,
    ) -> None:
        self.config = config
        self.risk: float | None = None
        self._switch_to(config.initial_scheme)
        self._refusals = list(refusals)
        self._weights = weights
        self._threshold = threshold

    def scores(self, p: Tensor, q: Tensor) -> Tensor:
        """F of SSD, ``[V]``."""
        return composite(p, q, self.scheme is Scheme.UNION, self.strength, self.config)

    def observe(self, p: Tensor, q: Tensor, matched: bool) -> None:
        """Smooth in the risk of one decided position; the next one follows it."""
        risk = self._risk(p, q, matched)
        share = 2 / (self.config.bin_size + 1)
        self.risk = risk if self.risk is None else self.risk + share * (risk - self.risk)
        self._switch_to(Scheme.UNION if self.risk > self._threshold else Scheme.INTERSECTION)

    def _switch_to(self, scheme: Scheme) -> None:
        union = scheme is Scheme.UNION
        self.scheme = scheme
        self.strength = self.config.alpha_union if union else self.config.alpha_intersection

    def _risk(self, p: Tensor, q: Tensor, matched: bool) -> float:
        target_entropy, draft_entropy = (float(torch.special.entr(x).sum()) for x in (p, q))
        divergence = -draft_entropy - float(torch.xlogy(q, p).sum())  # infinite where P alone is 0
        weights = self._weights
        return (
            weights.mismatch * (not matched)
            + weights.divergence * min(divergence, DIVERGENCE_LIMIT)
            + weights.entropy * (target_entropy - draft_entropy)
            + weights.refusal * float(q[self._refusals].sum())
        )


def risk_switch(
    refusal_tokens: Collection[int],
    weights: RiskWeights | None = None,
    threshold: float = THRESHOLD,
) -> Decoder:
    """The decoder that switches by risk.

    A block has at most T tokens: none is decided without a draft, and none is carried over.

    Args:
        refusal_tokens: ids that begin a refusal.
        weights: the project's best when not given.
        threshold: smoothed risk above it means union.

    Raises:
        SafeDraftError: refusals have a weight and no token that begins them.
    """
    weights = weights or RiskWeights()
    if weights.refusal and not refusal_tokens:
        raise SafeDraftError("the risk score needs at least one token that begins a refusal")
    ids = sorted(refusal_tokens)
    return blockwise(lambda config: RiskSwitch(config, ids, weights, threshold), bonus=False)


def ssd_risk(
    pair: Pair, messages: Sequence[Message], sampling: SamplingParams, config: SSDConfig
) -> Reply:
    """The defense: refusals begin as the pair's own tokenizer writes them."""
    return decoded(risk_switch(refusal_tokens(pair)))(pair, messages, sampling, config)
