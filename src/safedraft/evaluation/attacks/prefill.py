"""Prefilling: the assistant's turn begins with the first tokens of a compliant answer.

The attack that shallow alignment falls to (Qi et al., arXiv 2406.05946), and the one that SSD is
made for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from safedraft.evaluation.attacks.answers import compliant_answer, first_tokens
from safedraft.evaluation.attacks.base import asked
from safedraft.text.chat import Message

if TYPE_CHECKING:
    from safedraft.pair import Pair
    from safedraft.prompts.sources import Record


@dataclass(frozen=True)
class Prefill:
    """The request, and ``tokens`` tokens of an answer to it; 0 is the request alone."""

    tokens: int

    def __call__(self, record: Record, pair: Pair) -> list[Message]:
        """As ``Attack``; the record is left out if there is no compliant answer to it."""
        if not self.tokens:
            return asked(record.request)
        answer = compliant_answer(record, pair)
        return asked(record.request, first_tokens(pair, answer, self.tokens))
