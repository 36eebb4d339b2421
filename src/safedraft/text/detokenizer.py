"""Tokens to text, one token at a time.

``tokenizers.decoders.DecodeStream`` is not used: its ``step`` returns None both for a control token
and for an incomplete character, it hides the ids that ``spell`` and ``flush`` need, and after a
prompt that ends inside a character it returned text of the prompt ("hello �x" for "x", version
0.23.3), while the 8 microseconds that it saves per token are small beside a forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTEXT = 8  # number of prompt tokens that the first new tokens are decoded with


class Detokenizer:
    """Decodes tokens as they come and holds back a character until all its tokens are there.

    Args:
        tokenizer: decodes ids to text.
        prompt: token ids before the first one that is pushed; they are the context in which it is
            decoded (a word at the start of a text can lose its space), and are not returned.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-_CONTEXT:])
        self._context_start = 0
        self._context_end = len(self._ids)  # the text of the ids before it was returned

    def push(self, token: int) -> str:
        """Return the text that ``token`` completes; it is empty inside a character."""
        self._ids.append(token)
        text = self._pending_text()
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        if text:  # a control token has no text, so it cannot be the context of the next token
            self._context_start = self._context_end
        self._context_end = len(self._ids)
        return text

    def spell(self, token: int) -> str:
        """Return the text that ``token`` would add if it came next, without pushing it.

        Unlike in ``push``, control tokens are spelled out, and a part of a character is shown as a
        replacement character.
        """
        context, whole = (
            str(self._tokenizer.decode(ids, skip_special_tokens=False))
            for ids in (
                self._ids[self._context_start : self._context_end],
                [*self._ids[self._context_start :], token],
            )
        )
        return whole[len(context) :]

    def flush(self) -> str:
        """Return the text that was held back, where a broken character is a replacement one."""
        return self._pending_text() if self.pending else ""

    @property
    def pending(self) -> bool:
        """Whether the tokens so far end inside a character."""
        return self._context_end < len(self._ids)

    def _pending_text(self) -> str:
        context = self._decode(self._ids[self._context_start : self._context_end])
        return self._decode(self._ids[self._context_start :])[len(context) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
