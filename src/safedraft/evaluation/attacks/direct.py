"""No attack: the request as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safedraft.evaluation.attacks.base import build_messages
from safedraft.text.messages import Message

if TYPE_CHECKING:
    from safedraft.pair import Pair
    from safedraft.prompts.sources import Record


def direct(record: Record, pair: Pair) -> list[Message]:
    """Ask the request in one user message."""
    return build_messages(record.request)
