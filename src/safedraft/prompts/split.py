"""Which prompts are for training, which for calibration, and which for reports.

A prompt's place follows from its own text, so no list has to be kept: whoever takes prompts from a
source gets the same division, and a prompt met again in another spelling falls in the same part.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Literal, NamedTuple

from safedraft.core.errors import SafeDraftError

Split = Literal["train", "calibration", "report"]


class Shares(NamedTuple):
    """How a source is divided, in percent of its prompts; the rest is for reports."""

    train: int
    calibration: int


def split_of(request: str, shares: Shares) -> Split:
    """The part that a prompt belongs to.

    Raises:
        SafeDraftError: the shares are negative, or more than everything.
    """
    if min(shares) < 0 or sum(shares) > 100:
        raise SafeDraftError(f"{shares} are no shares: two percentages that sum to at most 100")
    percent = place(request) * 100
    if percent < shares.train:
        return "train"
    return "calibration" if percent < sum(shares) else "report"


def place(request: str) -> float:
    """Where a prompt stands among all texts, from 0 to just below 1: a hash of what it says."""
    return int(fingerprint(request)[:13], 16) / 16**13


def fingerprint(request: str) -> str:
    """SHA-256 of a prompt, the same for every case, white space and punctuation around its words.

    Returns:
        64 hexadecimal digits.
    """
    text = unicodedata.normalize("NFKC", request).casefold()
    words = re.findall(r"\w+", text) or [text]
    return hashlib.sha256(" ".join(words).encode(errors="surrogatepass")).hexdigest()
