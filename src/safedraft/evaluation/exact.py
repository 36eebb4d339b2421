"""Whether a worked-out number is the right one."""

from __future__ import annotations

import re
from decimal import Decimal

from inspect_ai.scorer import Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState

_NUMBER = re.compile(r"(?<![\w.])-?\$?\d[\d,]*(?:\.\d+)?")
_MARK = re.compile(r"answer(?:\s+is)?\W*?[:=]|answer\s+is|####|\\boxed\{", re.IGNORECASE)


@scorer(metrics=[accuracy(), stderr()], name="correct")
def correct() -> Scorer:
    """1 where the number that a reply arrives at is the target's last number, or else 0."""

    async def score(state: TaskState, target: Target) -> Score:
        cut = state.output.stop_reason == "max_tokens"
        found, wanted = arrived_at(state.output.completion, cut), last_number(target.text)
        if wanted is None:
            return Score.unscored(reason="bad_target", explanation="the target has no number")
        return Score(value=int(found == wanted), answer=None if found is None else str(found))

    return score


def arrived_at(reply: str, cut: bool = False) -> Decimal | None:
    """The number after the last "Answer:", or the last one of a reply that was not ``cut`` off.

    Where a sum follows the mark ("Answer: 6 * 7 = 42"), it is what that line says it comes to.
    """
    marks = list(_MARK.finditer(reply))
    if marks:
        line = reply[marks[-1].end() :].lstrip().partition("\n")[0]
        number = _NUMBER.search(line.rpartition("=")[2]) or _NUMBER.search(reply, marks[-1].end())
        return _value(number[0]) if number else None
    return None if cut else last_number(reply)


def last_number(text: str) -> Decimal | None:
    """The last number in a text."""
    numbers = _NUMBER.findall(text)
    return _value(numbers[-1]) if numbers else None


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", "").replace("$", "")).normalize()
