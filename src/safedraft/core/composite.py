"""Sample spaces and the composite distribution, F = P + α (q - P) (Sections 4.1 and 4.2).

Shapes: ``P`` (target) and ``q`` (draft) are probabilities ``[..., V]``; everything is batched over
the leading dimensions. F is not renormalised here: its argmax is the greedy token, and
``sampling.distribution`` makes it a distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from safedraft.core.config import SSDConfig

OUTSIDE = -torch.inf


def composite(
    target: Tensor,
    draft: Tensor,
    union: bool | Tensor,
    strength: float | Tensor,
    config: SSDConfig,
) -> Tensor:
    """Scores F(x) over the sample space of each row, ``-inf`` outside it.

    Args:
        target: P, ``[..., V]``.
        draft: q, ``[..., V]``.
        union: which rows are in union, a bool or ``[...]``; the rest are in intersection.
        strength: α of each row, a float or ``[...]``.
        config: gives c and κ.

    Returns:
        ``[..., V]``, the dtype of ``target``.
    """
    rows = torch.as_tensor(union)
    alpha = torch.as_tensor(strength, dtype=target.dtype, device=target.device)[..., None]
    if rows.all():
        return _union(target, draft, alpha, config)
    if not rows.any():
        return _intersection(target, draft, alpha, config)
    return torch.where(
        rows.to(target.device)[..., None],
        _union(target, draft, alpha, config),
        _intersection(target, draft, alpha, config),
    )


def _union(target: Tensor, draft: Tensor, alpha: Tensor, config: SSDConfig) -> Tensor:
    """S = Top_c(P) ∪ Top_c(q)."""
    size = min(config.sample_space_size, target.shape[-1])
    tokens = torch.cat([target.topk(size).indices, draft.topk(size).indices], dim=-1)
    return _scores(tokens, target, draft, alpha)


def _intersection(target: Tensor, draft: Tensor, alpha: Tensor, config: SSDConfig) -> Tensor:
    """S = Top_k(P) ∩ Top_k(q) for the smallest k that gives c tokens.

    A token's depth is the larger of its two ranks, so k is the c-th smallest depth + 1 and S is all
    that is less deep than k. Where none of the target's κ best is in Top_k(q), the models disagree
    so much that the target's own distribution stands.
    """
    tokens, draft_rank, depth = _depths(target, draft, config)
    size = min(config.sample_space_size, target.shape[-1])
    k = depth.kthvalue(size, dim=-1, keepdim=True).values + 1
    # Where a token is outside S, its place is filled with one that is inside: the shallowest.
    shallowest = tokens.gather(-1, depth.argmin(-1, keepdim=True))
    inside = torch.where(depth < k, tokens, shallowest)
    agreed = (draft_rank[..., : config.kappa] < k).any(-1, keepdim=True)
    return torch.where(agreed, _scores(inside, target, draft, alpha), target)


def _depths(target: Tensor, draft: Tensor, config: SSDConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The target's best tokens, their ranks in the draft, and their depths, each ``[..., K]``.

    K doubles until c tokens are common to both Top_K, which decides every depth below K exactly;
    ranks not seen within K read as V.
    """
    vocabulary = target.shape[-1]
    needed = min(config.sample_space_size, vocabulary)
    width = min(4 * max(needed, config.kappa), vocabulary)
    while True:
        order = torch.arange(width, device=target.device)
        tokens = target.topk(width).indices
        ranks = torch.full(target.shape, vocabulary, dtype=torch.long, device=target.device)
        ranks.scatter_(-1, draft.topk(width).indices, order.expand(tokens.shape))
        draft_rank = ranks.gather(-1, tokens)
        depth = torch.maximum(order, draft_rank)
        if width == vocabulary or ((depth < width).sum(-1) >= needed).all():
            return tokens, draft_rank, depth
        width = min(2 * width, vocabulary)


def _scores(tokens: Tensor, target: Tensor, draft: Tensor, alpha: Tensor) -> Tensor:
    """F at ``tokens``, ``-inf`` elsewhere."""
    p, q = target.gather(-1, tokens), draft.gather(-1, tokens)
    return torch.full_like(target, OUTSIDE).scatter_(-1, tokens, p + alpha * (q - p))
