"""Pauses of drafting, where the draft has no weight and its tokens are rejected.

A draft that was trained to refuse proposes refusals after a harmless answer has begun in a
compliant way. Where the rule gives it no weight, all of them are rejected, and a block costs
more than the one token that it yields. After a pause, drafting is tried again.
"""

from __future__ import annotations

_PATIENCE = 2  # blocks in a row whose first draft was rejected, before the first pause
_LONGEST = 32  # tokens


class Pauses:
    """Counts the rejected blocks of a request, and says when drafting pauses."""

    def __init__(self) -> None:
        self._rejected = 0  # blocks in a row
        self._left = 0  # tokens of the pause

    @property
    def active(self) -> bool:
        """Whether the target decides the next token alone."""
        return self._left > 0

    def note(self, *, drafted: bool, followed: bool, first: bool) -> None:
        """Note a decided token.

        Args:
            drafted: whether a token was drafted for the position.
            followed: whether the decided token was drafted, as the first child or as another one.
            first: whether it is the first token of its block.
        """
        if not drafted:
            self._left = max(self._left - 1, 0)
        elif followed:
            self._rejected = 0
        elif first:
            self._rejected += 1
            if self._rejected >= _PATIENCE:
                self._left = min(2**self._rejected, _LONGEST)
