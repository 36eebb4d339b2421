"""Near copies of sentences: what is trained on must not be what is measured on."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

NEAR = 0.75
"""Share of words in common above which one sentence counts as a copy of another."""

_WORDS = re.compile(r"[\u3040-\u9fff]|[^\W\u3040-\u9fff]+")
"""Words; in scripts without spaces every character is one."""


def words(text: str) -> frozenset[str]:
    return frozenset(_WORDS.findall(text.casefold()))


def texts_of(value: Any) -> Iterator[str]:
    """All texts in nested tables and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from texts_of(one)
    elif isinstance(value, list):
        for one in value:
            yield from texts_of(one)


def read_texts(folder: Any, without: Sequence[str] = ()) -> list[str]:
    """All texts of the TOML files in a folder, without those of the given names."""
    return [
        text
        for file in folder.iterdir()
        if file.name.endswith(".toml") and file.name.removesuffix(".toml") not in without
        for text in texts_of(tomllib.loads(file.read_text("utf-8")))
    ]


def find_copies(ours: list[str], theirs: list[str]) -> list[tuple[str, str]]:
    """Pairs of texts that have most of their words in common."""
    sets = [(text, words(text)) for text in theirs]
    by_word: dict[str, list[int]] = {}
    for at, (_, own) in enumerate(sets):
        for word in own:
            by_word.setdefault(word, []).append(at)
    copies = []
    for text in ours:
        own = words(text)
        shared = Counter(at for word in own for at in by_word.get(word, ()))
        for at, count in shared.items():
            if count >= 4 and count > NEAR * len(own | sets[at][1]):
                copies.append((text, sets[at][0]))
    return copies
