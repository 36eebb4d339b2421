"""A session for tests: logits are a function of the tokens so far. Offline, exact, instant."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class ScriptedSession:
    """Gives ``script(ids so far)``, a row of logits ``[V]``, after every token.

    It keeps what a cache would hold in ``ids`` and every call in ``calls``, so that tests can see
    what was computed, rewound, and never computed twice.
    """

    def __init__(self, script: Callable[[Sequence[int]], Tensor], name: str = "scripted") -> None:
        self._script = script
        self.name = name
        self.ids: list[int] = []
        self.calls: list[tuple[str, int]] = []

    def forward(self, ids: Sequence[int], keep: int) -> Tensor:
        """Append ``ids``; the logits after each of the last ``keep``, ``[keep, V]``."""
        if not 0 < keep <= len(ids):
            raise ValueError(f"cannot keep {keep} rows of {len(ids)} tokens")
        self.calls.append(("forward", len(ids)))
        self.ids.extend(ids)
        ends = range(len(self.ids) - keep + 1, len(self.ids) + 1)
        return torch.stack([self._script(self.ids[:end]) for end in ends]).float()

    def rewind(self, count: int) -> None:
        """Forget the last ``count`` tokens."""
        if not 0 <= count <= len(self.ids):
            raise ValueError(f"cannot rewind {count} of {len(self.ids)} tokens")
        self.calls.append(("rewind", count))
        del self.ids[len(self.ids) - count :]
