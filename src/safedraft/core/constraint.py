"""What a request allows at each position of its reply, such as a grammar.

Both models are kept to it before their distributions are combined: the draft while it proposes, so
that sampling stays exact and a token that the grammar forbids is no missed match.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

NOTHING_LEFT = "the grammar leaves no token"
"""Why a request ends in whose row no token would be left."""

UNLIKELY = -1e4
"""Added to the logit of a token that may come and that its model does not want: its probability
is 0, and the models still have the same vocabulary."""


class Constraint(Protocol):
    """What one reply may consist of."""

    def bias(self, drafts: Sequence[int], logits: Tensor) -> Tensor | None:
        """What is added to the logits of one model at a position.

        Args:
            drafts: the drafted tokens between the decided ones and the position.
            logits: the model's at the position, ``[V]``.

        Returns:
            ``[V]``, -∞ for a token that may not come, which is so for both models alike; None if
            any may.
        """
        ...

    def decide(self, token: int) -> None:
        """Note a decided token."""
        ...


def forbid(allowed: Tensor) -> Tensor:
    """The bias that leaves the tokens that are ``allowed``, truth values ``[V]``."""
    return torch.zeros(len(allowed)).masked_fill_(~allowed, -torch.inf)


class Constrained(NamedTuple):
    """One row of logits, as its request restricts it."""

    constraint: Constraint | None
    """None: any token may come."""
    drafts: Sequence[int]
    """The drafted tokens between the decided ones and the row's position."""


def restrict(logits: Tensor, rows: Sequence[Constrained]) -> tuple[Tensor, list[int]]:
    """Add to each row what its request adds; to a copy, if there is anything.

    Args:
        logits: ``[n, V]``.
        rows: how each row is restricted.

    Returns:
        The logits, and the rows in which no token would be left, which stay as they are.
    """
    restricted, emptied = logits, []
    for at, (constraint, drafts) in enumerate(rows):
        bias = constraint.bias(drafts, logits[at]) if constraint else None
        if bias is None:
            continue
        if bool(bias.max() == -torch.inf):
            emptied.append(at)
            continue
        if restricted is logits:
            restricted = logits.clone()
        restricted[at] += bias.to(logits.device)
    return restricted, emptied
