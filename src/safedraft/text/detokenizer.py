"""Tokens to text, one token at a time.

``tokenizers.decoders.DecodeStream`` is not used: its ``step`` returns None both for a control token
and for an incomplete character, it hides the ids that ``spell`` and ``flush`` need, and after a
prompt that ends inside a character it returned text of the prompt ("hello �x" for "x", version
0.23.3), while the 8 microseconds that it saves per token are small beside a forward pass.

A character that the vocabulary lacks is several tokens. Byte-level tokenizers decode an incomplete
one to a single replacement character. Those with byte fallback (``<0xE4>``, as in Llama 2) decode a
run of such tokens as a whole, and where it begins or ends inside a character, each of its bytes
becomes a replacement character. The ids that are decoded therefore begin and end where characters
do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTEXT = 8  # number of prompt tokens that the first new tokens are decoded with
_INCOMPLETE = 3  # tokens that an incomplete character can have: the longest is four bytes
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Decodes tokens as they come and holds back a character until all its tokens are there.

    A character that the prompt ends inside and the first tokens complete belongs to the reply as a
    whole, since the prompt's bytes alone have no text. If they do not complete it, it is a broken
    character of the prompt, and is not returned.

    The text of the prompt's whole characters and the pieces, joined, equal the text of all ids
    decoded at once, if that has no replacement character. Where it has one, a whole character may
    be kept that decoding at once breaks: it was returned before bytes of no character followed it.

    Args:
        tokenizer: decodes ids to text.
        prompt: token ids before the first one that is pushed; they are the context in which it is
            decoded (a word at the start of a text can lose its space), and are not returned.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        start, end = self._find_context(prompt)
        self._ids = list(prompt[start:])
        self._context_start = 0
        self._context_end = end - start  # the ids before it are whole characters, all returned
        self._returned_end = len(self._ids)  # later only while a prompt's character is incomplete

    def push(self, token: int) -> str:
        """Return the text that ``token`` completes; it is empty inside a character."""
        self._ids.append(token)
        text = self._text_after_returned(self._ids)
        if text.endswith(_REPLACEMENT):
            return ""
        if text:  # a control token has no text, so it cannot be the context of the next token
            self._context_start = self._context_end
        elif self._context_end < self._returned_end:
            return ""  # still inside the prompt's last character
        self._context_end = self._returned_end = len(self._ids)
        return text

    def spell(self, token: int) -> str:
        """Return the text that ``token`` would add if it came next, without pushing it.

        Unlike in ``push``, control tokens are spelled out, and a part of a character is shown as a
        replacement character.
        """
        return self._text_after_returned([*self._ids, token], skip_special_tokens=False)

    def flush(self) -> str:
        """Return the text that was held back, where a broken character is a replacement one."""
        return self._text_after_returned(self._ids) if self.pending else ""

    @property
    def pending(self) -> bool:
        """Whether the tokens so far end inside a character."""
        return self._context_end < len(self._ids)

    def _find_context(self, prompt: Sequence[int]) -> tuple[int, int]:
        """Return where the context of the first token starts and where whole characters end.

        The context is the window near the prompt's end with the fewest replacement characters.
        """
        end = len(prompt)
        start = max(end - _CONTEXT, 0)
        ends = range(end, max(end - _INCOMPLETE, 0) - 1, -1)
        starts = range(start, max(start - _INCOMPLETE, 0) - 1, -1)

        def count_broken(window: tuple[int, int]) -> int:
            return self._decode(prompt[slice(*window)]).count(_REPLACEMENT)

        return min(((first, last) for last in ends for first in starts), key=count_broken)

    def _text_after_returned(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ``ids`` from the context's start on, after what has been returned."""
        ends = (self._context_end, self._returned_end, len(ids))
        context, returned, whole = (
            self._decode(ids[self._context_start : end], skip_special_tokens) for end in ends
        )
        if whole.startswith(returned):
            return whole[len(returned) :]
        if whole.startswith(context):  # the prompt's last character is complete now
            return whole[max(len(context), _shared_length(returned, whole)) :]
        # Broken bytes made a replacement character of each byte before them in their run.
        kept = _shared_length(context, whole)
        return whole[kept + len(context[kept:].encode()) :]

    def _decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


def _shared_length(one: str, other: str) -> int:
    """Return the number of characters with which both texts begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
