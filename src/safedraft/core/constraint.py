"""What a request allows at each position of its reply, such as a grammar.

Both models are kept to it before their distributions are combined: the draft while it proposes, so
that sampling stays exact and a token that the grammar forbids is no missed match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from safedraft.core.errors import FormError

_NOTHING_LEFT = "the grammar leaves no token"

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

        Raises:
            FormError: it cannot be found.
        """
        ...

    def decide(self, token: int) -> None:
        """Note a decided token.

        Raises:
            FormError: it may not come.
        """
        ...


_BITS = torch.arange(32, dtype=torch.int32)


def unpack_bits(bits: Tensor, vocabulary: int) -> Tensor:
    """Truth values ``[V]`` of a mask whose bits stand in whole numbers of 32 bits; false beyond."""
    mask = (bits[:, None] >> _BITS & 1).bool().flatten()[:vocabulary]
    missing = vocabulary - len(mask)
    return torch.nn.functional.pad(mask, (0, missing)) if missing > 0 else mask


def forbid(allowed: Tensor) -> Tensor:
    """The bias that leaves the tokens that are ``allowed``, truth values ``[V]``."""
    return torch.zeros(len(allowed)).masked_fill_(~allowed, -torch.inf)


class Constrained(NamedTuple):
    """One row of logits, as its request restricts it."""

    constraint: Constraint | None
    """None: any token may come."""
    drafts: Sequence[int]
    """The drafted tokens between the decided ones and the row's position."""


def restrict(logits: Tensor, rows: Sequence[Constrained]) -> tuple[Tensor, Mapping[int, FormError]]:
    """Add to each row what its request adds; to a copy, if there is anything.

    Args:
        logits: ``[n, V]``.
        rows: how each row is restricted.

    Returns:
        The logits, and the rows in which no token can be chosen with the reason. Those rows stay
        as they are.
    """
    restricted, failed = logits, {}
    for at, (constraint, drafts) in enumerate(rows):
        try:
            bias = constraint.bias(drafts, logits[at]) if constraint else None
        except FormError as error:
            failed[at] = error
            continue
        if bias is None:
            continue
        if bool(bias.max() == -torch.inf):
            failed[at] = FormError(_NOTHING_LEFT)
            continue
        if restricted is logits:
            restricted = logits.clone()
        restricted[at] += bias.to(logits.device)
    return restricted, failed
