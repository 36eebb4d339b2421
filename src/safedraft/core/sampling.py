"""From scores to tokens: temperature, top-k and top-p, seeded draws, accept-or-correct.

Every function is batched over leading dimensions; ``V`` is the shared vocabulary.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import torch
from torch import Tensor

from safedraft.core.config import SamplingParams
from safedraft.core.errors import BrokenModel

_LEFT_OVER = 1e-20


def probabilities(logits: Tensor, temperature: float | Tensor = 0.0) -> Tensor:
    """Softmax in float32, ``[..., V]``; a temperature of 0 (greedy) leaves logits as they are.

    At a low temperature most probabilities are too small for float32, and zeros have no order. The
    sample spaces go by rank, so each keeps a share of 1e-20 of what it is at a temperature of 1.

    Args:
        logits: ``[..., V]``.
        temperature: a float, or one of each row, ``[...]``.
    """
    temperature = torch.as_tensor(temperature)
    if not temperature.any():
        return logits.softmax(-1, dtype=torch.float32)
    logits = logits.float()
    divisor = torch.where(temperature == 0, 1.0, temperature)[..., None].to(logits)
    # Counted from the largest, or else a small temperature makes infinities.
    tempered = ((logits - logits.amax(-1, keepdim=True)) / divisor).softmax(-1)
    return tempered + _LEFT_OVER * logits.softmax(-1)


def require_finite(logits: Tensor, model: str) -> None:
    """Refuse logits of which no probabilities can be made.

    Args:
        logits: of any shape.
        model: whose they are, for the message.

    Raises:
        BrokenModel: some are NaN or infinite.
    """
    # A sum is finite only if all of it is, and costs a tenth of looking at every one.
    if not logits.sum(dtype=torch.float32).isfinite():
        raise BrokenModel(
            f"{model} gave NaN or infinite logits; decoding stopped. "
            "Check its weights, or load it in another dtype."
        )


def distribution(scores: Tensor, sampling: SamplingParams) -> Tensor:
    """The composite as a distribution: F clipped at 0, cut by top-k and top-p, sums to 1.

    Args:
        scores: F, ``[..., V]``, ``-inf`` outside the sample space.
        sampling: gives ``top_k`` and ``top_p``.
    """
    mass = scores.clamp(min=0)
    # With α > 1 every score of a row can be negative: its best token is then all there is.
    best = torch.zeros_like(mass).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)
    mass = torch.where(mass.sum(-1, keepdim=True) > 0, mass, best)
    if 0 < sampling.top_k < mass.shape[-1]:
        top = mass.topk(sampling.top_k)
        mass = torch.zeros_like(mass).scatter_(-1, top.indices, top.values)
    if sampling.top_p < 1:
        mass = _nucleus(mass, sampling.top_p)
    return mass / mass.sum(-1, keepdim=True)


def _nucleus(mass: Tensor, share: float) -> Tensor:
    """The fewest largest entries that reach ``share`` of each row's mass; the rest is 0."""
    needed = share * mass.sum(-1, keepdim=True)
    width = min(64, mass.shape[-1])
    while True:
        top = mass.topk(width)
        reached = top.values.cumsum(-1)
        if width == mass.shape[-1] or (reached[..., -1:] >= needed).all():
            break
        width = min(4 * width, mass.shape[-1])
    kept = torch.where(reached - top.values < needed, top.values, 0.0)
    return torch.zeros_like(mass).scatter_(-1, top.indices, kept)


class LogProbabilities(NamedTuple):
    """Natural logarithms of one position's probabilities."""

    chosen: float
    most_likely: list[tuple[int, float]]
    """Token ids with theirs, the most likely first; none that cannot be chosen."""


def log_probabilities(
    scores: Tensor, token: int, sampling: SamplingParams, count: int
) -> LogProbabilities:
    """Those of the token that was taken from the composite, and of the most likely ones there.

    A greedy token is taken from F as it is, so no cut changes its probabilities.

    Args:
        scores: F, ``[V]``, ``-inf`` outside the sample space.
        token: the one that was taken.
        sampling: how it was taken.
        count: most of the most likely tokens.
    """
    cuts = SamplingParams() if sampling.greedy else sampling
    logprobs = distribution(scores, cuts).log()
    best = logprobs.topk(min(count, logprobs.shape[-1]))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    likely = [(id, logprob) for id, logprob in pairs if logprob > -math.inf]
    return LogProbabilities(logprobs[token].item(), likely)


class Draw(NamedTuple):
    """The uniform numbers in [0, 1) that decide one position."""

    propose: float
    accept: float
    correct: float


class Draws:
    """The draws of one request, by position.

    A position has its own draws, so a request's tokens depend on its seed alone: not on the length
    of a block, not on the engine, not on what else runs. A draft that is thrown away is redrawn
    with the same number; whether it is thrown away never depended on that number.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._drawn: list[Draw] = []

    def __getitem__(self, position: int) -> Draw:
        while len(self._drawn) <= position:
            uniform = self._random.random
            self._drawn.append(Draw(uniform(), uniform(), uniform()))
        return self._drawn[position]


def draw(mass: Tensor, uniform: float | Tensor) -> Tensor:
    """One token of each row by inverse transform sampling.

    Args:
        mass: non-negative weights, ``[..., V]``; they need not sum to 1.
        uniform: in [0, 1), a float or ``[...]``.

    Returns:
        Token ids, ``[...]``; never one whose weight is 0.
    """
    exact = torch.float32 if mass.device.type == "mps" else torch.float64
    cumulative = mass.cumsum(-1, dtype=exact)
    total = cumulative[..., -1:]
    point = torch.as_tensor(uniform, dtype=exact, device=mass.device)[..., None] * total
    point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point, right=True)[..., 0]


def accept_or_correct(
    composite: Tensor,
    draft: Tensor,
    drafted: Tensor,
    accept: float | Tensor,
    correct: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Accept x ~ q with probability min(1, F(x)/q(x)), else draw from norm(max(F - q, 0)).

    The token that comes out is distributed exactly as F (Leviathan et al., arXiv 2211.17192,
    Theorem 3.5, with F in the target's place).

    Args:
        composite: F as a distribution, ``[..., V]``.
        draft: q, ``[..., V]``.
        drafted: x, ``[...]``.
        accept: uniform in [0, 1), a float or ``[...]``.
        correct: uniform in [0, 1), a float or ``[...]``.

    Returns:
        The tokens and whether each is the drafted one, both ``[...]``.
    """
    index = drafted[..., None]
    chance = torch.as_tensor(accept, dtype=torch.float64, device="cpu").to(composite)
    accepted = chance * draft.gather(-1, index)[..., 0] < composite.gather(-1, index)[..., 0]
    residual = (composite - draft).clamp(min=0)
    residual = torch.where(residual.sum(-1, keepdim=True) > 0, residual, composite)
    return torch.where(accepted, drafted, draw(residual, correct)), accepted
