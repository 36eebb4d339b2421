"""Ways to write a text that hide its words from a glance; none of them is in the evaluation."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from functools import partial
from string import ascii_lowercase, ascii_uppercase
from typing import NamedTuple
from urllib.parse import quote

_MORSE = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- "
    "-. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --.."
)
_MIRRORED = str.maketrans(
    ascii_lowercase + ascii_uppercase, ascii_lowercase[::-1] + ascii_uppercase[::-1]
)
_CYRILLIC = str.maketrans("aceopxyABCEHKMOPTX", "асеорхуАВСЕНКМОРТХ")
_FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
_BOLD = {
    ord(letter): 0x1D400 + at + 26 * lower
    for lower, letters in enumerate((ascii_uppercase, ascii_lowercase))
    for at, letter in enumerate(letters)
}


class Encoded(NamedTuple):
    """An encoded text, and how it is written, as an English phrase."""

    text: str
    written: str


def encode(text: str, rng: random.Random) -> Encoded:
    """Encode a text in a random way; it may be in any script."""
    found = [(name, encoding(text)) for name, encoding in ENCODINGS.items()]
    written, encoded = rng.choice([(name, other) for name, other in found if other != text])
    return Encoded(encoded, written)


def shift_letters(text: str, places: int) -> str:
    """Replace each Latin letter by the one some places further in the alphabet."""
    alphabets = (ascii_lowercase, ascii_uppercase)
    shifted = "".join(letters[places:] + letters[:places] for letters in alphabets)
    return text.translate(str.maketrans("".join(alphabets), shifted))


def write_morse(text: str) -> str:
    """Write Latin letters in Morse code, with a bar between words."""
    if not text.isascii():
        return text
    signs = dict(zip(ascii_lowercase, _MORSE.split(), strict=True))
    words = (" ".join(signs.get(one, one) for one in word) for word in text.lower().split())
    return " / ".join(words)


def write_pig_latin(text: str) -> str:
    """Move the consonants at the beginning of each word to its end, and add "ay"."""
    return re.sub(r"\b([^\W\d_aeiouAEIOU]+)([a-zA-Z]+)", r"\2\1ay", text)


def count_letters(text: str) -> str:
    """Write Latin letters as their places in the alphabet."""
    words = re.findall(r"[a-z]+", text.lower()) if text.isascii() else []
    return " / ".join("-".join(str(ord(one) - 96) for one in word) for word in words) or text


def alternate_case(text: str) -> str:
    """Write every second character as a capital letter."""
    return "".join(one.upper() if at % 2 else one.lower() for at, one in enumerate(text))


def _change_words(change: Callable[[str], str], text: str) -> str:
    return re.sub(r"[^\W\d_]+", lambda word: change(word[0]), text)


ENCODINGS: Mapping[str, Callable[[str], str]] = {
    "in hexadecimal bytes": lambda text: text.encode().hex(" "),
    "percent-encoded, as in the address of a web page": partial(quote, safe=""),
    "in character codes": lambda text: " ".join(str(ord(one)) for one in text),
    "in Morse code": write_morse,
    "in a Caesar cipher with a shift of 3": partial(shift_letters, places=3),
    "in a Caesar cipher with a shift of 7": partial(shift_letters, places=7),
    "in Atbash, with the alphabet mirrored": lambda text: text.translate(_MIRRORED),
    "in Pig Latin": write_pig_latin,
    "backwards": lambda text: text[::-1],
    "with each word backwards": partial(_change_words, lambda word: word[::-1]),
    "with neighboring letters exchanged": partial(re.sub, r"([^\W\d_])([^\W\d_])", r"\2\1"),
    "without vowels": partial(re.sub, r"[aeiouAEIOU]", ""),
    "with stars for the vowels": partial(re.sub, r"[aeiouAEIOU]", "*"),
    "with every letter doubled": partial(re.sub, r"([^\W\d_])", r"\1\1"),
    "with hyphens inside the words": partial(_change_words, "-".join),
    "without spaces": lambda text: "".join(text.title().split()),
    "in letters of both sizes by turns": alternate_case,
    "in wide letters": lambda text: text.translate(_FULL_WIDTH),
    "in bold letters of mathematics": lambda text: text.translate(_BOLD),
    "with some letters of another alphabet": lambda text: text.translate(_CYRILLIC),
    "as numbers of the letters in the alphabet": count_letters,
}
"""Encodings by the phrase that names them; some leave texts in other scripts as they are."""
