"""What a draft is trained on before any model has spoken: requests, frames, openings, refusals."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from safedraft.core.errors import SafeDraftError
from safedraft.prompts.split import Shares, assign_split

Kind = Literal["harmful", "look_alike", "ordinary"]
Part = Literal["train", "calibration"]

OWN_SHARES = Shares(train=80, calibration=20)
"""Of the prompts that come with SafeDraft; the second part is what a run is checked on."""

SHIPPED = "shipped"
"""The source of the prompts that come with SafeDraft."""

_FIELD = re.compile(r"\{(request|spaced|noise)\}")
_NOISE_PIECES = (12, 24)
_NOISE_MARKS = tuple("!?;:.,{}[]()<>|/\\*&^%$#@~=+-_")


@dataclass(frozen=True)
class Request:
    """One thing that is asked of a model."""

    text: str
    kind: Kind
    source: str = SHIPPED
    category: str | None = None


@dataclass(frozen=True)
class Requests:
    """All requests of one part, by what a draft should do with them."""

    harmful: list[Request]
    """To refuse."""
    ordinary: list[Request]
    """To answer as the target does: everyday prompts and look-alikes of harmful ones."""


def read_requests(
    part: Part, harmful: Sequence[str] = (), ordinary: Sequence[str] = ()
) -> Requests:
    """The requests of a part: of the given sources, or those that come with SafeDraft.

    Args:
        part: the sources' own division, or for SafeDraft's prompts that of ``OWN_SHARES``.
        harmful: names of sources or files; SafeDraft's own harmful requests if there are none.
        ordinary: likewise; SafeDraft's own ordinary prompts and look-alikes if there are none.

    Raises:
        SafeDraftError: a source cannot be read, or no harmful or no ordinary prompts are left.
    """
    found = Requests(
        _from(harmful, "harmful", part) if harmful else _own(part, {"harmful"}),
        _from(ordinary, "ordinary", part) if ordinary else _own(part, {"look_alike", "ordinary"}),
    )
    for kind, requests in (("harmful", found.harmful), ("ordinary", found.ordinary)):
        if not requests:
            raise SafeDraftError(
                f"there are no {kind} prompts for {part}: give files with more by --{kind}"
            )
    return found


def shipped() -> list[Request]:
    """Every prompt that comes with SafeDraft, in the order of the files."""
    fields: tuple[tuple[Kind, str], ...] = (("harmful", "harmful"), ("look_alike", "safe"))
    requests = [
        Request(text, kind, SHIPPED, category)
        for file in ("requests", "twins", "confidential")
        for category, table in _data(file).items()
        for kind, field in fields
        for text in table[field]
    ]
    everyday = [
        Request(text, "ordinary", SHIPPED, category)
        for category, table in _data("ordinary").items()
        for text in table["prompts"]
    ]
    return requests + everyday


def _own(part: Part, kinds: set[Kind]) -> list[Request]:
    return [r for r in shipped() if r.kind in kinds and assign_split(r.text, OWN_SHARES) == part]


def _from(specs: Iterable[str], kind: Kind, part: Part) -> list[Request]:
    return list(dict.fromkeys(request for spec in specs for request in _read(spec, kind, part)))


def _read(spec: str, kind: Kind, part: Part) -> list[Request]:
    from safedraft.prompts.sources import find_source

    return [  # of one source maybe none: another may have some
        Request(record.request, kind, record.source, record.category)
        for record in find_source(spec).read_split(part)
    ]


def frames() -> list[str]:
    """The jailbreak frames, for ``framed``."""
    return [frame for table in _data("wrappers").values() for frame in table["frames"]]


def framed(request: str, rng: random.Random) -> str:
    """A request in a frame drawn at random, with noise where the frame has it."""
    said = {
        "request": lambda: request,
        "spaced": lambda: " ".join(request),
        "noise": lambda: _noise(rng),
    }
    # In one pass: a request may hold braces of its own.
    return _FIELD.sub(lambda field: said[field[1]](), rng.choice(frames()))


def _noise(rng: random.Random) -> str:
    """What an optimised suffix looks like: bits of words and marks, glued without sense."""
    words = _noise_words()
    pieces = [
        rng.choice(words)[: rng.randint(2, 9)] + rng.choice(("", " ", *_NOISE_MARKS))
        for _ in range(rng.randint(*_NOISE_PIECES))
    ]
    return "".join(rng.choice((piece, piece.title(), f" {piece}")) for piece in pieces)


@cache
def _noise_words() -> list[str]:
    text = " ".join(request.text for request in shipped() if request.kind == "ordinary")
    return sorted({word for word in text.split() if word.isalpha()})


def openings() -> list[str]:
    """Beginnings under which a target complies; ``{topic}`` is for ``opened``."""
    return list(_data("openings")["requested"])


def generic_beginnings() -> list[str]:
    """Beginnings of harmful answers that fit any request."""
    return list(_data("openings")["generic"])


def relapses() -> list[str]:
    """How a refusal is taken back before a harmful answer goes on."""
    return list(_data("openings")["relapses"])


def opened(opening: str, request: str) -> str:
    """An opening that names the request, if it wants to."""
    topic = request.strip().rstrip(".?!")
    return opening.replace("{topic}", topic[:1].lower() + topic[1:])


def refusals() -> list[str]:
    """How a draft declines, without a space before it."""
    data = _data("refusals")
    return [f"{data['opening']} {ending}" for ending in data["endings"]]


@cache
def _data(name: str) -> dict[str, Any]:
    text = files("safedraft.training").joinpath(f"data/{name}.toml").read_text("utf-8")
    return tomllib.loads(text)
