"""The two prompts of a request: each model reads the conversation through its own template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from safedraft.core.session import Which


@dataclass(frozen=True)
class Prompts:
    """Token ids that each model continues."""

    target: list[int]
    draft: list[int]
    questions: Mapping[Which, list[int]] = field(default_factory=dict)
    """Each model's prompt up to where the reply begins; empty if that is not known."""
    thinks: bool = False
    """Whether the reply begins with reasoning."""
    ask: Callable[[str], Mapping[Which, list[int]]] | None = field(default=None, compare=False)
    """The questions with a text after the request; None if only token ids are known."""

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the prompt of the target, then the prompt of the draft."""
        return iter((self.target, self.draft))

    @property
    def longest(self) -> int:
        """Length of the longer prompt, in tokens."""
        return max(len(self.target), len(self.draft))
