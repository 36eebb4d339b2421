"""The beginnings of refusals, and the sentence that replaces a withheld answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFUSAL = "I'm sorry, but I can't help with that."
"""The text that the user gets in place of a withheld answer."""

OPENINGS = ("I'm sorry", "I can't", "I cannot", "Sorry", "Apologies", "Unfortunately")
"""Beginnings of refusals, of which the first token counts; "I" begins much else as well."""

LANGUAGES = (
    "Lo siento",
    "Je suis désolé",
    "Desculpe",
    "Es tut mir leid",
    "Mi dispiace",
    "Извините",
    "抱歉",
    "申し訳ありません",
)
"""Beginnings of refusals in the other languages in which drafts are trained."""


def refusal_tokens(tokenizer: PreTrainedTokenizerBase | None, vocabulary: int) -> frozenset[int]:
    """Ids that begin a refusal, at the start of a reply or after a space.

    Args:
        tokenizer: writes the refusals; without one, no ids are known.
        vocabulary: ids from here on are left out.
    """
    if tokenizer is None:
        return frozenset()
    texts = [*OPENINGS, *(f" {opening}" for opening in OPENINGS)]
    first = {tokenizer.encode(text, add_special_tokens=False)[0] for text in texts}
    # Where a space is a token of its own, it begins every word.
    return frozenset(id for id in first if id < vocabulary and tokenizer.decode([id]).strip())
