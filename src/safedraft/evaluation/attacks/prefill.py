"""Prefilling: the assistant's turn begins with the first tokens of a compliant answer.

Shallow alignment falls to this attack (Qi et al., arXiv 2406.05946); SSD is designed against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safedraft.evaluation.attacks.answers import (
    draw_compliant_answer,
    draw_compliant_answers,
    take_tokens,
)
from safedraft.evaluation.attacks.base import build_messages
from safedraft.text.messages import Message

if TYPE_CHECKING:
    from safedraft.pair import Pair
    from safedraft.prompts.sources import Record


@dataclass(frozen=True)
class Prefill:
    """The request and the first ``tokens`` tokens of an answer to it; 0 is the request alone."""

    tokens: int

    def __call__(self, record: Record, pair: Pair) -> list[Message]:
        """Like ``Attack``; skips records without a compliant answer."""
        if not self.tokens:
            return build_messages(record.request)
        answer = draw_compliant_answer(record, pair)
        return build_messages(record.request, take_tokens(pair, answer, self.tokens))

    def draw_answers(
        self,
        records: Sequence[Record],
        pair: Pair,
        report: Callable[[int, int], None] | None = None,
    ) -> Sequence[str | None]:
        """Like ``DrawsAnswers``; 0 tokens need no answer."""
        if not self.tokens:
            return [""] * len(records)
        return draw_compliant_answers(records, pair, report)


prefill_0, prefill_5, prefill_10, prefill_20, prefill_40 = map(Prefill, (0, 5, 10, 20, 40))
