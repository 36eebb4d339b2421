"""Constraints of a request on the logits at each position of its reply, such as a grammar.

Both models' logits are changed before their distributions are combined: the draft's while it
proposes, so that sampling stays exact and a token that the grammar forbids does not count as a
mismatch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from safedraft.core.errors import FormError

_NOTHING_LEFT = "what the request allows leaves no token"

UNLIKELY = -1e4
"""Added to the logit of a token that may come and that its model does not want: its probability
is 0, and the models still have the same vocabulary."""


class Constraint(Protocol):
    """The tokens that one reply may consist of, or prefers."""

    def apply(self, drafts: Sequence[int], logits: Tensor) -> Tensor:
        """Change the logits of one model at a position.

        Args:
            drafts: the drafted tokens between the decided ones and the position.
            logits: logits of the model at the position, ``[V]``; they are left as they are.

        Returns:
            ``[V]``, -∞ for a forbidden token, the same tokens for both models; ``logits`` itself if
            nothing changes.

        Raises:
            FormError: the allowed tokens cannot be computed.
        """
        ...

    def decide(self, token: int) -> None:
        """Note a decided token.

        Raises:
            FormError: the token is not allowed.
        """
        ...


class TokenFilter:
    """Allows some tokens alone, and forbids words: a ``Constraint``.

    Args:
        allowed: ids of the tokens of which the reply may consist; None allows all.
        words: the token ids of each forbidden word, of which the last may not follow the others.
    """

    def __init__(self, allowed: Sequence[int] | None, words: Sequence[Sequence[int]]) -> None:
        self._allowed = None if allowed is None else torch.tensor(allowed, dtype=torch.long)
        self._words = [(list(before), last) for *before, last in words]
        self._reply: list[int] = []

    def apply(self, drafts: Sequence[int], logits: Tensor) -> Tensor:
        """See ``Constraint``."""
        said = [*self._reply, *drafts]
        ends = [last for before, last in self._words if said[-len(before) or len(said) :] == before]
        if self._allowed is None and not ends:
            return logits
        filtered = logits.clone()
        if self._allowed is not None:
            forbidden = torch.ones(len(logits), dtype=torch.bool)
            forbidden[self._allowed] = False
            filtered[forbidden.to(logits.device)] = -torch.inf
        filtered[torch.tensor(ends, dtype=torch.long, device=logits.device)] = -torch.inf
        return filtered

    def decide(self, token: int) -> None:
        """See ``Constraint``."""
        self._reply.append(token)


_BITS = torch.arange(32, dtype=torch.int32)


def unpack_bits(bits: Tensor, vocabulary: int) -> Tensor:
    """Unpack a mask of 32-bit integers into truth values ``[V]``, false beyond its end."""
    mask = (bits[:, None] >> _BITS & 1).bool().flatten()[:vocabulary]
    missing = vocabulary - len(mask)
    return torch.nn.functional.pad(mask, (0, missing)) if missing > 0 else mask


def forbid(allowed: Tensor) -> Tensor:
    """Make the bias that forbids all tokens but those in ``allowed``, truth values ``[V]``."""
    return torch.zeros(len(allowed)).masked_fill_(~allowed, -torch.inf)


class Constrained(NamedTuple):
    """The constraints of a request that apply to one row of logits."""

    constraints: Sequence[Constraint]
    """Applied one after the other; none: any token may come."""
    drafts: Sequence[int]
    """The drafted tokens between the decided ones and the row's position."""


def restrict(logits: Tensor, rows: Sequence[Constrained]) -> tuple[Tensor, Mapping[int, FormError]]:
    """Apply the constraints of each row's request to a copy of the logits, if there are any.

    Args:
        logits: ``[n, V]``.
        rows: constraints of each row.

    Returns:
        The logits, in float32 if any changed, and for each row in which no token can be chosen the
        reason; such rows are not changed.
    """
    changed: dict[int, Tensor] = {}
    failed: dict[int, FormError] = {}
    for at, (constraints, drafts) in enumerate(rows):
        row = own = logits[at]
        try:
            for constraint in constraints:
                row = constraint.apply(drafts, row)
        except FormError as error:
            failed[at] = error
            continue
        if row is not own:
            changed[at] = row
    if not changed:
        return logits, failed
    restricted = logits.to(torch.float32, copy=True)
    maxima = torch.stack([row.max() for row in changed.values()]).tolist()
    for (at, row), maximum in zip(changed.items(), maxima, strict=True):
        if maximum == -torch.inf:
            failed[at] = FormError(_NOTHING_LEFT)
        else:
            restricted[at] = row
    return restricted, failed
