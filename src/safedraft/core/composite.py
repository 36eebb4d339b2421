"""Sample spaces and the composite distribution, F = P + α (q - P) (Sections 4.1 and 4.2).

F is a number for each token of the sample space, a few dozen at most. It is not renormalized here:
its largest value is the greedy token, and ``sampling.distribution`` makes it a distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safedraft.core.rows import Rows

OUTSIDE = -torch.inf
NO_TOKEN = 2**62
"""Fills up the sample spaces of rows that have fewer tokens than others."""


class Setting(NamedTuple):
    """Scheme, weight and constants of the composite at one position."""

    union: bool
    """Whether it is in union; otherwise it is in intersection."""
    alpha: float
    """α, the weight of the draft."""
    size: int
    """c."""
    kappa: int = 1
    """κ."""


class Whole(NamedTuple):
    """Every token of a position whose sample space is the whole vocabulary."""

    values: Tensor
    """``[V]``: the scores."""
    draft: Tensor
    """``[V]``: q."""


class Scores(NamedTuple):
    """Scores by which the tokens of n positions are chosen: the largest, or a draw above 0."""

    tokens: Tensor
    """``[n, S]``: the sample space of each position by id, filled up with ``NO_TOKEN``."""
    values: Tensor
    """``[n, S]``: the score of each token, ``-inf`` at what fills up."""
    draft: Tensor
    """``[n, S]``: q of each token."""
    whole: Sequence[Whole | None]
    """All tokens of a position whose sample space is the whole vocabulary, where
    ``Rows.needs_whole`` says that they are needed. ``values`` then hold the best of its scores."""
    open: Sequence[bool]
    """Whether a position's sample space is the whole vocabulary."""
    evidence: Scores | None = None
    """Scores that decide whether a position counts as a match, if the token is chosen from other
    scores."""
    rounds: bool = False
    """Whether the siblings of a rejected draft are tried in rounds of their own, as in Sequoia,
    where the sample space is the whole vocabulary. Otherwise the token is drawn first."""
    signals: Sequence[Any] | None = None
    """A signal of the rule for each position, passed on to its ``observe``."""


def composite(rows: Rows, settings: Sequence[Setting]) -> Scores:
    """Compute F over the sample space of each row.

    Args:
        rows: both models' predictions at n positions.
        settings: scheme, weight and constants of each row.

    *Union:* S = Top_c(P) ∪ Top_c(q). *Intersection:* S = Top_k(P) ∩ Top_k(q) for the smallest k
    that gives c tokens. The depth of a token is the larger of its two ranks, so k is the c-th
    smallest depth plus 1, and S is every token of a smaller depth. Where none of the target's top-κ
    tokens is in Top_k(q), P replaces F.
    """
    in_union = torch.tensor([setting.union for setting in settings])
    size = torch.minimum(torch.tensor([setting.size for setting in settings]), rows.possible)
    order = torch.arange(rows.width)
    ranks = rows.draft_ranks()
    depth = torch.maximum(order, ranks)
    certain = torch.where(in_union, rows.known, (depth < rows.known[:, None]).sum(-1))
    if short := (certain < size).nonzero().flatten().tolist():
        return _look_deeper(rows, settings, set(short))
    k = depth.sort(-1).values.gather(-1, size[:, None] - 1) + 1
    kappa = torch.tensor([setting.kappa for setting in settings])[:, None]
    agreed = ((ranks < k) & (order < kappa)).any(-1)
    open_rows = ~agreed & ~in_union
    best = order < size[:, None]
    alone = open_rows[:, None] & (order < rows.possible[:, None])
    of_target = torch.where(in_union[:, None], best, (depth < k) | alone)
    of_draft = best & in_union[:, None]
    tokens = torch.cat([rows.target_tokens, rows.draft_tokens], dim=-1)
    tokens = sort_space(tokens, torch.cat([of_target, of_draft], dim=-1))
    alpha = torch.tensor([setting.alpha for setting in settings])
    weights = torch.where(open_rows, 0.0, alpha)
    return mix(rows, tokens, weights.tolist(), open_rows.tolist())


def sort_space(tokens: Tensor, inside: Tensor) -> Tensor:
    """The distinct tokens of each row that are ``inside``, by id, ``[n, S]``; both ``[n, k]``."""
    tokens = tokens.masked_fill(~inside, NO_TOKEN).sort(-1).values
    again = tokens[:, 1:] == tokens[:, :-1]
    tokens[:, 1:].masked_fill_(again, NO_TOKEN)
    tokens = tokens.sort(-1).values
    return tokens[:, : int((tokens < NO_TOKEN).sum(-1).max())]


def mix(rows: Rows, tokens: Tensor, alpha: Sequence[float], open_rows: Sequence[bool]) -> Scores:
    """Compute P + α (q - P) at the tokens of each sample space.

    Args:
        rows: both models' predictions at n positions.
        tokens: the sample spaces, ``[n, S]``, as ``sort_space`` gives them.
        alpha: α of each row.
        open_rows: which rows have the whole vocabulary as their sample space.
    """
    filled = tokens < NO_TOKEN
    p, q = rows.probabilities(torch.where(filled, tokens, tokens[:, :1]))
    values = p + torch.tensor(alpha, dtype=p.dtype)[:, None] * (q - p)
    whole: list[Whole | None] = [None] * len(rows)
    for row, is_open in enumerate(open_rows):
        if is_open and rows.needs_whole[row]:
            target, draft = rows.distributions(row)
            whole[row] = Whole(target + alpha[row] * (draft - target), draft)
    return Scores(tokens, values.masked_fill(~filled, OUTSIDE), q, whole, list(open_rows))


def _look_deeper(rows: Rows, settings: Sequence[Setting], short: set[int]) -> Scores:
    """Score the rows whose best tokens do not decide their sample space apart from the others."""
    parts: list[tuple[list[int], Scores]] = []
    for deeper in (False, True):
        chosen = [row for row in range(len(rows)) if (row in short) is deeper]
        if chosen:
            part = rows.select(chosen)
            own = [settings[row] for row in chosen]
            parts.append((chosen, composite(part.widen() if deeper else part, own)))
    return join(parts, len(rows))


def join(parts: Sequence[tuple[Sequence[int], Scores]], count: int) -> Scores:
    """Join the scores of several groups of rows into one table."""
    size = max(scores.tokens.shape[-1] for _, scores in parts)
    tokens = torch.full((count, size), NO_TOKEN)
    values = torch.full((count, size), OUTSIDE)
    draft = torch.zeros(count, size)
    whole: list[Whole | None] = [None] * count
    open_rows = [False] * count
    for chosen, scores in parts:
        width = scores.tokens.shape[-1]
        at = torch.tensor(chosen)
        tokens[at, :width], values[at, :width] = scores.tokens, scores.values
        draft[at, :width] = scores.draft
        for place, row in enumerate(chosen):
            whole[row], open_rows[row] = scores.whole[place], scores.open[place]
    return Scores(tokens, values, draft, whole, open_rows)


def probability_of(scores: Scores, tokens: Tensor) -> Tensor:
    """The probability of one token ``[n]`` at each position under the normalized scores, ``[n]``.

    Where the sample space is the whole vocabulary, it is that of a token among the best ones.
    """
    mass = scores.values.clamp(min=0)
    totals = torch.where(torch.tensor(scores.open), 1.0, mass.sum(-1))
    chosen = torch.where(scores.tokens == tokens[:, None], mass, 0.0).sum(-1)
    return chosen / totals
