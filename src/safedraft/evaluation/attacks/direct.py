"""No attack: the request as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safedraft.evaluation.attacks.base import asked
from safedraft.text.chat import Message

if TYPE_CHECKING:
    from safedraft.pair import Pair
    from safedraft.prompts.sources import Record


def direct(record: Record, pair: Pair) -> list[Message]:
    """The request, in one user message."""
    return asked(record.request)
