"""What the decoding loop needs of an engine: sessions, and passes that run together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import takewhile
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from safedraft.core.rows import require_finite

Which = Literal["target", "draft"]


class Session(Protocol):
    """One sequence of tokens in one model, with a cache whose end can be taken back."""

    @property
    def name(self) -> str:
        """Name of the model in error messages."""
        ...

    @property
    def hidden(self) -> Tensor:
        """Hidden states that the last pass gave the output layer, ``[keep, H]`` in float32.

        Raises:
            BrokenModelError: the model gives no access to them.
        """
        ...

    def rewind(self, count: int) -> None:
        """Forget the last ``count`` tokens."""
        ...


def rewind_to(session: Session, held: Sequence[int], tokens: Sequence[int]) -> Sequence[int]:
    """Rewind a session to the tokens that it shares with those that are read next.

    Args:
        session: the session; its last tokens are ``held``.
        held: tokens that may be removed.
        tokens: tokens that replace them, at least one.

    Returns:
        The end of ``tokens`` that is not in the session yet: at least the last token.
    """
    pairs = zip(held, tokens[:-1], strict=False)
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    session.rewind(len(held) - shared)
    return tokens[shared:]


class Pass(NamedTuple):
    """One forward pass of one model for one request."""

    session: Session
    tokens: Sequence[int]
    """Appended to the session."""
    keep: int
    """How many of the last tokens are followed by logits in the result, at least 1."""


@runtime_checkable
class SessionEngine(Protocol):
    """An engine whose models can be asked about any sequence of tokens."""

    def session(self, which: Which) -> Session:
        """A new, empty session in one of the two models."""
        ...

    def forward(self, passes: Sequence[Pass]) -> list[Tensor]:
        """Run the passes, together where the engine can and one by one where it cannot.

        Returns:
            For each pass the logits after its last ``keep`` tokens, ``[keep, V]`` in float32, on
            the device where target and draft are combined. V is the vocabulary they share.
        """
        ...


class Reader:
    """Reads one model's probabilities after texts of the caller.

    Args:
        engine: runs the model.
        which: which of the two models.
    """

    def __init__(self, engine: SessionEngine, which: Which) -> None:
        self._engine, self._session = engine, engine.session(which)
        self.passes = 0
        self.seconds = 0.0

    def read(self, tokens: Sequence[int], keep: int) -> Tensor:
        """Append tokens, and return the probabilities after the last ``keep`` of them.

        Returns:
            ``[keep, V]`` in float32 at a temperature of 1.

        Raises:
            BrokenModelError: the logits are not all finite.
        """
        started = time.perf_counter()
        (logits,) = self._engine.forward([Pass(self._session, tokens, keep)])
        require_finite(logits, self._session.name)
        probabilities = logits.softmax(-1, dtype=torch.float32).cpu()
        self.passes += 1
        self.seconds += time.perf_counter() - started
        return probabilities

    def rewind(self, count: int) -> None:
        """Forget the last ``count`` tokens."""
        self._session.rewind(count)
