"""What the loop asks of an engine, and no more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Session(Protocol):
    """A model that holds a growing sequence of tokens whose end can be taken back."""

    @property
    def name(self) -> str:
        """What errors call the model."""
        ...

    def forward(self, ids: Sequence[int], keep: int) -> Tensor:
        """Append ``ids`` and give the logits that follow each of the last ``keep`` of them.

        Returns:
            ``[keep, V]`` in float32, V the vocabulary that target and draft share, on the device
            where the two are combined.
        """
        ...

    def rewind(self, count: int) -> None:
        """Forget the last ``count`` tokens."""
        ...


class Clocked:
    """A session that counts its passes and the seconds they take."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.name = session.name
        self.passes = 0
        self.seconds = 0.0

    def forward(self, ids: Sequence[int], keep: int) -> Tensor:
        """As the session's own."""
        started = time.perf_counter()
        logits = self._session.forward(ids, keep)
        if logits.device.type != "cpu":
            torch.accelerator.synchronize(logits.device)
        self.seconds += time.perf_counter() - started
        self.passes += 1
        return logits

    def rewind(self, count: int) -> None:
        """As the session's own."""
        self._session.rewind(count)
