"""No attack: the request as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safedraft.chat import Message
from safedraft.evaluation.attacks.base import asked

if TYPE_CHECKING:
    from safedraft.evaluation.sources import Record
    from safedraft.pairs.pair import Pair


def direct(record: Record, pair: Pair) -> list[Message]:
    """The request, in one user message."""
    return asked(record.request)
