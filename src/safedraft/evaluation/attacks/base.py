"""What an attack is, and the little that several of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from safedraft.core.errors import SafeDraftError
from safedraft.prompts.split import place
from safedraft.text.chat import Message

if TYPE_CHECKING:
    from safedraft.pair import Pair
    from safedraft.prompts.sources import Record

_T = TypeVar("_T")


class LeftOut(SafeDraftError):
    """An attack cannot be made from this record; it counts neither for nor against a defense."""


class Attack(Protocol):
    """Anything that makes a conversation of a record."""

    def __call__(self, record: Record, pair: Pair) -> list[Message]:
        """What a defense is asked; messages that end in an assistant turn are to be continued.

        Args:
            record: what the attacker wants.
            pair: the models, with the configuration of the defense that is attacked.

        Raises:
            LeftOut: it cannot be made from this record.
            SafeDraftError: what it needs is out of reach.
        """
        ...


def asked(text: str, begun: str = "") -> list[Message]:
    """A user's message, and how the assistant's turn begins."""
    user: Message = {"role": "user", "content": text}
    return [user, {"role": "assistant", "content": begun}] if begun else [user]


def chosen(choices: Sequence[_T], request: str) -> _T:
    """One of ``choices``, always the same for a request."""
    return choices[int(place(request) * 1_000_003) % len(choices)]
