"""Mixtures of the two models over the whole vocabulary, for rules without a sample space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safedraft.core.composite import OUTSIDE, Scores, mix, sort_space
from safedraft.core.rows import Rows


def score_vocabulary(rows: Rows, alpha: Sequence[float]) -> Scores:
    """Compute P + α (q - P) over the whole vocabulary; with α = 0 that is P.

    A token outside of both models' best tokens scores at most P + α (q - P) of the last of these.
    Where no ranked token exceeds this bound, more tokens are ranked.

    Args:
        rows: both models' predictions at n positions.
        alpha: α of each row, at most 1.
    """
    tokens = torch.cat([rows.target_tokens, rows.draft_tokens], dim=-1)
    space = sort_space(tokens, torch.ones_like(tokens, dtype=torch.bool))
    scores = mix(rows, space, alpha, [True] * len(rows))
    bounds = _bounds(rows, alpha)
    if rows.width < rows.vocabulary and bool((scores.values.amax(-1) <= bounds).any()):
        return score_vocabulary(rows.widen(), alpha)
    return scores


def remove_tokens(scores: Scores, removed: Sequence[int | None]) -> Scores:
    """Return the scores without the given token of each row; None removes nothing."""
    values, whole = scores.values.clone(), list(scores.whole)
    for row, token in enumerate(removed):
        if token is None:
            continue
        values[row].masked_fill_(scores.tokens[row] == token, OUTSIDE)
        if full := whole[row]:
            others = full.values.index_fill(0, torch.tensor([token]), OUTSIDE)
            whole[row] = full._replace(values=others)
    return scores._replace(values=values, whole=whole)


def _bounds(rows: Rows, alpha: Sequence[float]) -> Tensor:
    """Compute the largest score that a token without a rank can have, ``[n]``."""
    p, _ = rows.probabilities(rows.target_tokens[:, -1:])
    _, q = rows.probabilities(rows.draft_tokens[:, -1:])
    weights = torch.tensor(alpha, dtype=p.dtype)
    return (1 - weights) * p[:, 0] + weights * q[:, 0]
