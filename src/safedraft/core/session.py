"""The interface between the decoding loop and an engine: sessions, and passes run together."""

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
        """Forget the last ``count`` tokens; no node of a tree is open."""
        ...

    def keep(self, path: Sequence[int]) -> None:
        """Keep some of the open nodes of a tree, and forget the others; none is open afterwards.

        Args:
            path: numbers of nodes, each of which follows the one before it; the first follows the
                token before the nodes.
        """
        ...


class OpenNodes:
    """The nodes of a tree at the end of a session: tokens that several continuations share.

    Nodes are numbered in the order in which they were appended, from 0. The text of a node consists
    of the tokens before all nodes and of its ancestors; their keys lie apart from each other.
    """

    def __init__(self) -> None:
        self.paths: list[list[int]] = []
        """For each node the numbers of its ancestors and its own number, the first first."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def is_chain(self) -> bool:
        """Whether each node is the child of the node before it."""
        return all(len(path) == number for number, path in enumerate(self.paths, 1))

    def append(self, parents: Sequence[int]) -> None:
        """Append nodes; ``parents`` are as in ``Pass``."""
        for parent in parents:
            ancestors = self.paths[parent] if parent >= 0 else []
            self.paths.append([*ancestors, len(self.paths)])

    def clear(self) -> None:
        """Make no node open."""
        self.paths.clear()


def rewind_to(
    session: Session, held: Sequence[int], tokens: Sequence[int], least: int = 1
) -> Sequence[int]:
    """Rewind a session to the tokens that it shares with those that are read next.

    Args:
        session: the session; its last tokens are ``held``.
        held: tokens that may be removed.
        tokens: tokens that replace them, at least one.
        least: number of the last of these tokens that are read in any case.

    Returns:
        The end of ``tokens`` that is not in the session yet.
    """
    pairs = zip(held, tokens[: max(len(tokens) - least, 0)], strict=False)
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    session.rewind(len(held) - shared)
    return tokens[shared:]


class Pass(NamedTuple):
    """One forward pass of one model for one request."""

    session: Session
    tokens: Sequence[int]
    """Appended to the session."""
    keep: int
    """Number of the last tokens after which the result has logits, at least 1."""
    parents: Sequence[int] = ()
    """For each of the last tokens, if they are nodes of a tree, the number of the node that it
    follows among the session's open nodes; -1: the last token before them. The tokens before these
    follow each other, and there are none where nodes are open already."""


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
