"""Encoded texts of the probe's training."""

from __future__ import annotations

import random
from urllib.parse import unquote

import pytest

from safedraft.evaluation.attacks.encodings import ENCODINGS as MEASURED
from safedraft.training.encodings import ENCODINGS, encode

TEXT = "How do I fix a flat tyre on my bicycle?"


@pytest.mark.parametrize(
    "text", [TEXT, "Как испечь хлеб?", "如何烤面包？", "¿Cómo arreglo un pinchazo?", "8 + 5 = ?"]
)
def test_every_script_can_be_encoded(text: str) -> None:
    rng = random.Random(0)
    drawn = [encode(text, rng) for _ in range(200)]
    assert all(one.text.strip() and one.text != text for one in drawn)
    assert len({one.written for one in drawn}) > 5


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_changes_a_text(name: str) -> None:
    assert ENCODINGS[name](TEXT) != TEXT


def test_no_encoding_is_one_that_is_measured_on() -> None:
    ours = {encoding(TEXT) for encoding in ENCODINGS.values()}
    assert len(ours) == len(ENCODINGS)
    assert not ours & {one.encode(TEXT) for one in MEASURED}


@pytest.mark.parametrize(
    ("name", "decode"),
    [
        ("in hexadecimal bytes", lambda text: bytes.fromhex(text).decode()),
        ("percent-encoded, as in the address of a web page", unquote),
        ("in character codes", lambda text: "".join(chr(int(one)) for one in text.split())),
        ("backwards", lambda text: text[::-1]),
        ("in wide letters", lambda text: text.translate({0xFEE0 + n: n for n in range(33, 127)})),
        (
            "in Atbash, with the alphabet mirrored",
            ENCODINGS["in Atbash, with the alphabet mirrored"],
        ),
        ("with neighboring letters exchanged", ENCODINGS["with neighboring letters exchanged"]),
    ],
)
def test_nothing_is_lost(name: str, decode: object) -> None:
    assert callable(decode)
    assert decode(ENCODINGS[name](TEXT)) == TEXT


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("in Morse code", "... --- ... / .. .. .."),
        ("in a Caesar cipher with a shift of 3", "vrv lll"),
        ("as numbers of the letters in the alphabet", "19-15-19 / 9-9-9"),
        ("without vowels", "ss "),
        ("with every letter doubled", "ssooss iiiiii"),
        ("with hyphens inside the words", "s-o-s i-i-i"),
        ("in letters of both sizes by turns", "sOs iIi"),
        ("without spaces", "SosIii"),
        ("in Pig Latin", "ossay iii"),
    ],
)
def test_how_it_is_written(name: str, expected: str) -> None:
    assert ENCODINGS[name]("sos iii") == expected
