"""Divides prompts into splits for training, calibration and reports.

The split of a prompt follows from a hash of its text, so no list has to be kept: every user of a
source gets the same division, and a prompt in another spelling gets the same split.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal, NamedTuple

from safedraft.core.errors import SafeDraftError
from safedraft.models.fingerprint import digest

Split = Literal["train", "calibration", "report"]


class Shares(NamedTuple):
    """Percentages of a source's prompts for two of the splits; the rest is for reports."""

    train: int
    calibration: int


def assign_split(request: str, shares: Shares) -> Split:
    """The split that a prompt belongs to.

    Raises:
        SafeDraftError: a share is negative, or the shares sum to more than 100.
    """
    if min(shares) < 0 or sum(shares) > 100:
        raise SafeDraftError(f"shares {shares}: give two percentages that sum to at most 100")
    percent = unit_hash(request) * 100
    if percent < shares.train:
        return "train"
    return "calibration" if percent < sum(shares) else "report"


def unit_hash(request: str) -> float:
    """Hash of a prompt's text as a number in [0, 1)."""
    return int(fingerprint(request)[:13], 16) / 16**13


def fingerprint(request: str) -> str:
    """SHA-256 of a prompt's words; case, white space and punctuation do not change it.

    Returns:
        64 hexadecimal digits.
    """
    text = unicodedata.normalize("NFKC", request).casefold()
    words = re.findall(r"\w+", text) or [text]
    return digest(" ".join(words).encode(errors="surrogatepass"))
