"""Attacks that put fixed texts around the request: frames, roles, histories, openings of the reply.

Each is a file of variants in ``data/attacks``, written for SafeDraft. Which variant a request gets
follows from its hash, and its control gets the same one. No text of a variant depends on the
request, so that two conversations of one variant differ in the request alone.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from safedraft.evaluation.attacks.base import SkipSampleError, choose
from safedraft.text.messages import Message, with_system

if TYPE_CHECKING:
    from safedraft.pair import Pair
    from safedraft.prompts.sources import Record

LANGUAGES = {
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "pt": "Portuguese",
    "de": "German",
    "it": "Italian",
    "ru": "Russian",
    "zh": "Chinese",
    "ja": "Japanese",
}
"""Names of the languages that frames can ask for, by their ISO 639-1 codes."""


@dataclass(frozen=True)
class Variant:
    """A conversation with slots: ``{request}``, and ``{language}`` for the name of its language."""

    turns: tuple[str, ...] = ("{request}",)
    """Turns of user and assistant; the first and the last are turns of the user."""
    system: str = ""
    """System prompt; none if empty."""
    begun: str = ""
    """The beginning of the reply; empty if it is not begun."""
    language: str | None = None
    """Code of the only language whose requests get this variant; None for all."""

    def fill(self, record: Record) -> list[Message]:
        """Build the conversation of a record; a system prompt of its own stands first.

        Raises:
            SkipSampleError: the variant names the request's language, whose name is not known.
        """
        roles = ("user", "assistant")
        texts = [*self.turns, self.begun] if self.begun else self.turns
        messages: list[Message] = [
            {"role": roles[at % 2], "content": _fill(text, record)} for at, text in enumerate(texts)
        ]
        return with_system(with_system(messages, self.system), record.system)


def _fill(text: str, record: Record) -> str:
    if "{language}" in text:
        if record.language not in LANGUAGES:
            raise SkipSampleError(f"the frame has no name for the language {record.language!r}")
        text = text.replace("{language}", LANGUAGES[record.language])
    return text.replace("{request}", record.request)


@dataclass(frozen=True)
class Framed:
    """The attack whose variants are in the file of that name."""

    name: str

    def __call__(self, record: Record, pair: Pair) -> list[Message]:
        """Like ``Attack``; skips records in languages for which it has no variant."""
        variants = [
            variant
            for variant in load_variants(self.name)
            if variant.language in (None, record.language)
        ]
        if not variants:
            raise SkipSampleError(f"{self.name} has no text in the language {record.language!r}")
        return choose(variants, record).fill(record)


@cache
def load_variants(name: str) -> Sequence[Variant]:
    """The variants in the file of that name."""
    text = files("safedraft.evaluation").joinpath(f"data/attacks/{name}.toml").read_text("utf-8")
    return [
        Variant(**{**entry, "turns": tuple(entry.get("turns", Variant.turns))})
        for entry in tomllib.loads(text)["variants"]
    ]


copying = Framed("copying")
frames = Framed("frames")
histories = Framed("histories")
languages_mixed = Framed("languages_mixed")
languages_prefill = Framed("languages_prefill")
prefill_code = Framed("prefill_code")
prefill_json = Framed("prefill_json")
prefill_markdown = Framed("prefill_markdown")
prefill_opening = Framed("prefill_opening")
quiz = Framed("quiz")
role_play = Framed("role_play")
short_answers = Framed("short_answers")
system_prompts = Framed("system_prompts")
