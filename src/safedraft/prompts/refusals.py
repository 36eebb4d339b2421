"""How a refusal reads: the sentence that stands for a withheld answer, and how refusals begin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from safedraft.pair import Pair

REFUSAL = "I'm sorry, but I can't help with that."
"""What the user is told in place of an answer that is withheld."""

OPENINGS = ("I'm sorry", "I can't", "I cannot", "Sorry", "Apologies", "Unfortunately")
"""Beginnings of refusals, of which the first token counts; "I" begins much else as well."""


def refusal_tokens(pair: Pair) -> frozenset[int]:
    """Shared ids that begin a refusal, at the start of a reply or after a space.

    Raises:
        SafeDraftError: the draft has no tokenizer.
    """
    tokenizer = pair.draft.tokenizer
    if tokenizer is None:
        raise SafeDraftError(f"{pair.draft.name} has no tokenizer to tell how refusals begin")
    texts = [*OPENINGS, *(f" {opening}" for opening in OPENINGS)]
    first = {tokenizer.encode(text, add_special_tokens=False)[0] for text in texts}
    # Where a space is a token of its own, it begins every word.
    return frozenset(id for id in first if id < pair.vocabulary and tokenizer.decode([id]).strip())
