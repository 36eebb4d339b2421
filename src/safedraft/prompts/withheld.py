"""Requests that nothing is trained, calibrated or tuned on, known by their fingerprints alone.

They are those of published test sets, so that figures on these sets remain figures on unseen
requests. The list holds no text, and a request is recognized by its words.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from safedraft.models.fingerprint import digest

_DIGITS = 16
"""Hexadecimal digits of a fingerprint."""


def is_withheld(request: str) -> bool:
    """Whether a request is on the list; case and punctuation do not matter."""
    words = re.findall(r"[a-z0-9]+", request.lower())
    return digest(" ".join(words).encode())[:_DIGITS] in _load_fingerprints()


@cache
def _load_fingerprints() -> frozenset[str]:
    text = files("safedraft.prompts").joinpath("data/withheld.txt").read_text("ascii")
    return frozenset(text.split())
