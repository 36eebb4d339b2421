"""The choice of tokens by scores: the cuts by top-k, top-p and min-p, draws, accept-or-correct.

Every function works on the sample space of n positions, ``[n, S]``: a few dozen numbers each, in
the order of the tokens' ids. A position whose sample space is the whole vocabulary has S = V.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from safedraft.core.config import SamplingParams
from safedraft.core.rows import move

_FIRST_WIDTH = 64
"""Number of best tokens of a sample space that a cut looks at first."""


def distribution(values: Tensor, cuts: Sequence[SamplingParams]) -> Tensor:
    """Make distributions of scores: clip at 0, cut by top-k, top-p and min-p, and normalize.

    Args:
        values: ``[n, S]``, ``-inf`` outside the sample space, by id.
        cuts: sampling parameters with ``top_k``, ``top_p`` and ``min_p`` of each row.
    """
    mass = values.clamp(min=0)
    empty = ~(mass.sum(-1, keepdim=True) > 0)
    if empty.any():  # with α > 1 every score can be negative: the best token is all there is
        best = torch.zeros_like(mass).scatter_(-1, values.argmax(-1, keepdim=True), 1.0)
        mass = torch.where(empty, best, mass)
    if any(cut.top_k or cut.top_p < 1 or cut.min_p for cut in cuts):
        mass = _cut(mass, cuts)
    return mass / mass.sum(-1, keepdim=True)


def _cut(mass: Tensor, cuts: Sequence[SamplingParams]) -> Tensor:
    """Keep the k most likely tokens of each row, and of these the fewest that reach its top-p.

    Then min-p keeps the tokens that are likely enough in relation to the best one, as in
    Transformers (vLLM applies min-p before top-p). The best tokens are examined first, and more
    tokens only if the cuts keep more: sorting a vocabulary takes longer than the rest.
    """
    size = mass.shape[-1]
    limits = [cut.top_k or size for cut in cuts]
    top_k = torch.tensor(limits)[:, None]
    top_p = torch.tensor([cut.top_p for cut in cuts], dtype=mass.dtype)[:, None]
    min_p = torch.tensor([cut.min_p for cut in cuts], dtype=mass.dtype)[:, None]
    totals = mass.sum(-1, keepdim=True)
    width = max([_FIRST_WIDTH, *(limit + 1 for limit in limits if limit < size)])
    while True:
        width = min(width, size)
        places = mass.topk(width).indices.sort(-1).values if width < size else None
        values, places = _sort(mass, places)
        within = values.masked_fill(torch.arange(width) >= top_k, 0.0)
        reference = torch.where(top_k < size, within.sum(-1, keepdim=True), totals)
        before = within.cumsum(-1) - within
        kept = within.masked_fill((top_p < 1) & (before >= top_p * reference), 0.0)
        kept = kept.masked_fill(values < min_p * values[:, :1], 0.0)
        # Tokens that tie with the last one may be missing: none of these may be kept.
        at_border = (values == values[:, -1:]) & (values > 0)
        if width == size or not bool((kept > 0).logical_and(at_border).any()):
            return torch.zeros_like(mass).scatter_(-1, places, kept)
        width *= 8


def _sort(mass: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights of each row and their places, the largest first, ties by place."""
    if places is None:
        ranked = mass.sort(dim=-1, descending=True, stable=True)
        return ranked.values, ranked.indices
    ranked = mass.gather(-1, places).sort(dim=-1, descending=True, stable=True)
    return ranked.values, places.gather(-1, ranked.indices)


def draw(mass: Tensor, uniforms: Sequence[float]) -> Tensor:
    """Draw one index of each row by inverse transform sampling.

    Args:
        mass: non-negative weights, ``[n, S]``; they need not sum to 1.
        uniforms: numbers in [0, 1), one for each row.

    Returns:
        Indices into the rows, ``[n]``; never one whose weight is 0.
    """
    exact = torch.float32 if mass.device.type == "mps" else torch.float64
    cumulative = mass.cumsum(-1, dtype=exact)
    total = cumulative[:, -1:]
    numbers = move(torch.tensor(uniforms, dtype=exact), mass.device)
    point = numbers[:, None] * total
    point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point, right=True)[:, 0]


def accept(
    composite: Tensor, draft_chances: Sequence[float], places: Tensor, uniforms: Sequence[float]
) -> Tensor:
    """Accept x ~ q with probability min(1, F(x) / q(x)).

    Args:
        composite: F as distributions, ``[n, S]``.
        draft_chances: q(x) of each row.
        places: where x stands in each row, ``[n]``; -1 if it is outside the sample space.
        uniforms: numbers in [0, 1), one for each row.

    Returns:
        Whether x is accepted, ``[n]``.
    """
    chances = composite.gather(-1, places.clamp(min=0)[:, None])[:, 0]
    chances = torch.where(places < 0, 0.0, chances).double()
    thresholds = torch.tensor(uniforms, dtype=torch.float64)
    return thresholds * torch.tensor(draft_chances, dtype=torch.float64) < chances


def correct(composite: Tensor, draft: Tensor, uniforms: Sequence[float]) -> Tensor:
    """Draw from norm(max(F - q, 0)) after a rejection.

    Together with ``accept`` the token is distributed exactly as F (Leviathan et al., arXiv
    2211.17192, Theorem 3.5, with F in the target's place).

    Args:
        composite: F as distributions, ``[n, S]``.
        draft: q of the same tokens, ``[n, S]``.
        uniforms: numbers in [0, 1), one for each row.

    Returns:
        Indices into the rows, ``[n]``.
    """
    return draw(_subtract(composite, draft), uniforms)


def _subtract(composite: Tensor, draft: Tensor) -> Tensor:
    """max(F - q, 0) of each row, not normalized; F itself if that is 0 everywhere."""
    residual = (composite - draft).clamp(min=0)
    return torch.where(residual.sum(-1, keepdim=True) > 0, residual, composite)


def draw_others(mass: Tensor, first: int, uniforms: Sequence[float]) -> tuple[int, ...]:
    """Draw more indices without replacement, after ``first`` was drawn.

    Args:
        mass: non-negative weights, ``[S]``; they need not sum to 1.
        first: the index that was drawn.
        uniforms: numbers in [0, 1), one for each index to draw.

    Returns:
        The indices in the order in which they were drawn; fewer if no other index has a weight.
    """
    mass, drawn = mass.clone(), [first]
    for number in uniforms:
        mass[drawn[-1]] = 0
        if not bool(mass.sum() > 0):
            break
        drawn.append(int(draw(mass[None], [number])[0]))
    return tuple(drawn[1:])


def choose_by_rounds(
    composite: Tensor, draft: Tensor, drawn: Sequence[int], accepts: Sequence[float], last: float
) -> int:
    """Choose a token after the first drawn one was rejected, as Sequoia does (arXiv 2402.12374).

    Each round subtracts q from the remainder of F, tries the next token, which was drawn from q
    without the tokens before it, and accepts it as ``accept`` does. If no token is accepted, one is
    drawn from the last remainder. Over all rounds, the token is distributed exactly as F.

    Args:
        composite: F as a distribution, ``[V]``.
        draft: q as a distribution, ``[V]``.
        drawn: tokens that were drawn from q without replacement; the first one was rejected.
        accepts: numbers in [0, 1), one for each of the other tokens.
        last: a number in [0, 1), by which the token is drawn if none is accepted.
    """
    left, untried = composite.double(), draft.double()
    for before, token, number in zip(drawn, drawn[1:], accepts, strict=False):
        left = _subtract(left, untried)
        left = left / left.sum()
        untried = untried.index_fill(0, torch.tensor([before]), 0.0)
        untried = untried / untried.sum()
        if number * float(untried[token]) < float(left[token]):
            return token
    return int(draw(_subtract(left, untried)[None], [last])[0])


class LogProbabilities(NamedTuple):
    """Natural logarithms of one position's probabilities."""

    chosen: float
    most_likely: list[tuple[int, float]]
    """Token ids with theirs, the most likely first; none that cannot be chosen."""


def log_probabilities(
    tokens: Tensor, values: Tensor, chosen: int, sampling: SamplingParams, count: int
) -> LogProbabilities:
    """Log probabilities of the chosen token and of the most likely ones at its position.

    A greedy token is taken from F as it is, so no cut changes its probabilities.

    Args:
        tokens: the sample space, ``[S]``, by id.
        values: F, ``[S]``, ``-inf`` outside the sample space.
        chosen: index of the chosen token in ``tokens``.
        sampling: the parameters by which it was chosen.
        count: maximum number of the most likely tokens.
    """
    cuts = SamplingParams() if sampling.greedy else sampling
    logs = distribution(values[None], [cuts])[0].log()
    best = logs.sort(descending=True, stable=True)
    pairs = zip(tokens[best.indices[:count]].tolist(), best.values[:count].tolist(), strict=True)
    likely = [(id, value) for id, value in pairs if value > -math.inf]
    return LogProbabilities(float(logs[chosen]), likely)
