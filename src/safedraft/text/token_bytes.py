"""The bytes of a token that has no text of its own, since it is a part of a character."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""The form in which SentencePiece writes a token that is one byte."""


def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes | None:
    """Return the bytes of a token from its name; None if the name does not say them.

    Names say them where a vocabulary is of bytes (byte-level BPE, in which each byte has a
    character) or falls back on bytes (SentencePiece).
    """
    name = tokenizer.convert_ids_to_tokens(token)
    if not isinstance(name, str):
        return None
    if byte := _BYTE_TOKEN.fullmatch(name):
        return bytes([int(byte[1], 16)])
    alphabet = _byte_of_character()
    if name and all(character in alphabet for character in name):
        return bytes(alphabet[character] for character in name)
    return None


@cache
def _byte_of_character() -> dict[str, int]:
    """The byte that each character of byte-level BPE stands for.

    A printable byte is its own character in Latin-1; the others follow in order from 256.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + at): byte for at, byte in enumerate(others)}
