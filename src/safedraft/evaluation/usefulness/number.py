"""Compares the number that a reply gives as its answer with the right one."""

from __future__ import annotations

import re
from decimal import Decimal

from inspect_ai.scorer import Score

_NUMBER = re.compile(r"(?<![\w.])-?\$?\d[\d,]*(?:\.\d+)?")
_MARK = re.compile(r"answer(?:\s+is)?\W*?[:=]|answer\s+is|####|\\boxed\{", re.IGNORECASE)


def check_number(reply: str, expected: str, truncated: bool) -> Score:
    """Score 1 if a reply's answer equals the last number of ``expected``, otherwise 0."""
    right = find_last_number(expected)
    if right is None:
        return Score.unscored(reason="bad_target", explanation="the target has no number")
    answer = extract_answer(reply, truncated)
    return Score(value=int(answer == right), answer=None if answer is None else str(answer))


def extract_answer(reply: str, truncated: bool = False) -> Decimal | None:
    """Find the number after the last "Answer:", or the last number of a reply without one.

    If a calculation follows the mark ("Answer: 6 * 7 = 42"), the result on that line is the answer.
    A ``truncated`` reply without a mark has no answer.
    """
    marks = list(_MARK.finditer(reply))
    if marks:
        line = reply[marks[-1].end() :].lstrip().partition("\n")[0]
        number = _NUMBER.search(line.rpartition("=")[2]) or _NUMBER.search(reply, marks[-1].end())
        return _parse(number[0]) if number else None
    return None if truncated else find_last_number(reply)


def find_last_number(text: str) -> Decimal | None:
    """The last number in a text, or None."""
    numbers = _NUMBER.findall(text)
    return _parse(numbers[-1]) if numbers else None


def _parse(number: str) -> Decimal:
    return Decimal(number.replace(",", "").replace("$", "")).normalize()
