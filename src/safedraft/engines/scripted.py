"""An engine for tests: logits are a function of the tokens so far. Offline, exact, instant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from safedraft.core.decode import Batch
from safedraft.core.session import OpenNodes, Pass, Which
from safedraft.engines.base import Capabilities, Capability

Script = Callable[[Sequence[int]], Tensor]
"""From the tokens so far to the logits ``[V]`` of the next."""


class ScriptedSession:
    """Gives ``script(tokens so far)`` after every token.

    It keeps what a cache would hold in ``ids`` and every call in ``calls``, so that tests can see
    what was computed, rewound, and never computed twice.
    """

    def __init__(self, script: Script, name: str = "scripted") -> None:
        self._script = script
        self.name = name
        self.ids: list[int] = []
        self.open = OpenNodes()
        self.calls: list[tuple[str, int]] = []
        self._logits = torch.empty(0, 0)

    def forward(self, ids: Sequence[int], keep: int, parents: Sequence[int] = ()) -> Tensor:
        """Append ``ids``; the logits after each of the last ``keep``, ``[keep, V]``."""
        if not 0 < keep <= len(ids):
            raise ValueError(f"cannot keep {keep} rows of {len(ids)} tokens")
        if self.open and len(parents) < len(ids):
            raise ValueError("tokens without a parent cannot follow open nodes")
        self.calls.append(("forward", len(ids)))
        self.ids.extend(ids)
        self.open.append(parents)
        ends = range(len(self.ids) - keep, len(self.ids))
        self._logits = torch.stack([self._script(self._text(end)) for end in ends]).float()
        return self._logits

    def _text(self, place: int) -> list[int]:
        """The tokens up to the one at ``place``, without nodes of other continuations."""
        first = len(self.ids) - len(self.open)
        if place < first:
            return self.ids[: place + 1]
        path = self.open.paths[place - first]
        return [*self.ids[:first], *(self.ids[first + node] for node in path)]

    @property
    def hidden(self) -> Tensor:
        """The logits of the last pass, which scripts have in place of hidden states."""
        return self._logits

    def rewind(self, count: int) -> None:
        """Forget the last ``count`` tokens."""
        if self.open or not 0 <= count <= len(self.ids):
            raise ValueError(f"cannot rewind {count} of {len(self.ids)} tokens")
        self.calls.append(("rewind", count))
        del self.ids[len(self.ids) - count :]

    def keep(self, path: Sequence[int]) -> None:
        """Keep the open nodes of ``path``, and close the others."""
        if path and self.open.paths[path[-1]] != [*path]:
            raise ValueError(f"{path} is not a path of the open nodes")
        self.calls.append(("rewind", len(self.open) - len(path)))
        first = len(self.ids) - len(self.open)
        self.ids[first:] = [self.ids[first + node] for node in path]
        self.open.clear()


class ScriptedEngine:
    """Two scripts that decode together.

    Args:
        target: script of the target.
        draft: script of the draft.
    """

    name = "scripted"
    capabilities = Capabilities(
        {
            Capability.MODELS: "scripts have no weights",
            Capability.TOGETHER: "scripts are asked one after the other",
        }
    )

    def __init__(self, target: Script, draft: Script) -> None:
        self._scripts: dict[Which, Script] = {"target": target, "draft": draft}
        self.sessions: list[ScriptedSession] = []
        """All sessions so far, for tests to look at."""
        self.batches: list[int] = []
        """Number of passes in each call of ``forward``."""

    def session(self, which: Which) -> ScriptedSession:
        """A new, empty session."""
        session = ScriptedSession(self._scripts[which], which)
        self.sessions.append(session)
        return session

    def forward(self, passes: Sequence[Pass]) -> list[Tensor]:
        """Run the passes one by one."""
        self.batches.append(len(passes))
        return [
            cast("ScriptedSession", one.session).forward(one.tokens, one.keep, one.parents)
            for one in passes
        ]

    def batch(self) -> Batch:
        """Requests that are decoded together."""
        return Batch(self)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""
