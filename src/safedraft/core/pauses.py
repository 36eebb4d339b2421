"""Pauses of drafting, where the draft has no influence and its tokens are not taken.

A draft that was trained to refuse proposes refusals after a harmless answer has begun in a
compliant way. Where the rule gives it no weight, all of them are rejected, and a block costs more
than the token of the target that comes of it. Such a draft is asked again from time to time.
"""

from __future__ import annotations

_PATIENCE = 2  # blocks in a row whose first draft was rejected, before the first pause
_LONGEST = 32  # tokens


class Pauses:
    """Counts what becomes of a request's drafts, and says when none are made."""

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
            drafted: whether a draft was there.
            followed: whether the token is the draft.
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
