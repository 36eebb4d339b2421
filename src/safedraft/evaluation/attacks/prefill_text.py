"""Prefilling without a compliant opening: the reply begins with plain text of the target's answer.

Nothing in such a beginning says yes, so that only what it is about can be recognized. The text is
generated under a compliant opening, which is then removed (see ``draw_answer_texts``), and a
harmless request begins with as many tokens of the target's answer to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safedraft.evaluation.attacks.answers import draw_answer_text, draw_answer_texts, take_tokens
from safedraft.evaluation.attacks.base import build_messages
from safedraft.text.messages import Message

if TYPE_CHECKING:
    from safedraft.pair import Pair
    from safedraft.prompts.sources import Record


@dataclass(frozen=True)
class PrefillText:
    """The request and the first ``tokens`` tokens of the target's own answer to it."""

    tokens: int

    def __call__(self, record: Record, pair: Pair) -> list[Message]:
        """Like ``Attack``; skips records that the target refuses or answers in fewer tokens."""
        text = draw_answer_text(record, pair, self.tokens)
        return build_messages(record.request, take_tokens(pair, text, self.tokens))

    def draw_answers(
        self,
        records: Sequence[Record],
        pair: Pair,
        report: Callable[[int, int], None] | None = None,
    ) -> Sequence[str | None]:
        """Like ``DrawsAnswers``."""
        return draw_answer_texts(records, pair, self.tokens, report)


prefill_text_5, prefill_text_20, prefill_text_40, prefill_text_100, prefill_text_200 = map(
    PrefillText, (5, 20, 40, 100, 200)
)
