"""Texts from which training data is made: requests, frames, openings, refusals."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple

from safedraft.core.errors import SafeDraftError
from safedraft.prompts.split import Shares, assign_split

RequestKind = Literal["harmful", "look_alike", "ordinary"]
TrainingSplit = Literal["train", "calibration"]

OWN_SHARES = Shares(train=80, calibration=20)
"""Shares of the splits of SafeDraft's own prompts; a run is checked on the second one."""

SHIPPED = "shipped"
"""Name of the source of SafeDraft's own prompts."""

OWN = "own"
"""SafeDraft's own prompts where sources are named: beside others, they would be replaced."""

_LANGUAGES = "languages"

_FILES: Mapping[str, str] = {
    **dict.fromkeys(("requests", "twins", "confidential", "ordinary"), SHIPPED),
    **dict.fromkeys(("languages_west", "languages_east"), _LANGUAGES),
    "code": "code",
    "short": "short",
    "wordings": "wordings",
}
"""Sources of SafeDraft's own requests by file."""

_KINDS: Mapping[str, RequestKind] = {
    "harmful": "harmful",
    "safe": "look_alike",
    "ordinary": "ordinary",
    "prompts": "ordinary",
}
"""Kinds of the requests by the name of their list in a table."""

_FIELD = re.compile(r"\{(request|spaced|noise)\}")
_NOISE_PIECES = (12, 24)
_NOISE_MARKS = tuple("!?;:.,{}[]()<>|/\\*&^%$#@~=+-_")


@dataclass(frozen=True)
class TrainingRequest:
    """One request to a model, with its kind and origin."""

    text: str
    kind: RequestKind
    source: str = SHIPPED
    category: str | None = None

    @property
    def language(self) -> str:
        """The language that it is written in, which only SafeDraft's own requests name."""
        return self.category or "en" if self.source == _LANGUAGES else "en"


class Sources(NamedTuple):
    """Names of sources of requests, or files with some; ``own`` names SafeDraft's own requests."""

    harmful: Sequence[str] = ()
    """SafeDraft's own if there are none."""
    ordinary: Sequence[str] = ()
    """SafeDraft's own, look-alikes among them, if there are none."""


OWN_SOURCES = Sources()


@dataclass(frozen=True)
class TrainingRequests:
    """All requests of one split, by the behavior that the draft should learn."""

    harmful: list[TrainingRequest]
    """Requests to refuse."""
    ordinary: list[TrainingRequest]
    """Requests to answer as the target does: ordinary prompts and look-alikes of harmful ones."""


def read_requests(split: TrainingSplit, sources: Sources = OWN_SOURCES) -> TrainingRequests:
    """Read the requests of a split.

    Args:
        split: as the sources divide their records; ``OWN_SHARES`` divides SafeDraft's prompts.
        sources: the sources of the requests.

    Raises:
        SafeDraftError: a source cannot be read, or no harmful or no ordinary prompts are left.
    """
    requests = TrainingRequests(
        _read_all(sources.harmful or [OWN], "harmful", split),
        _read_all(sources.ordinary or [OWN], "ordinary", split),
    )
    for kind, prompts in (("harmful", requests.harmful), ("ordinary", requests.ordinary)):
        if not prompts:
            raise SafeDraftError(
                f"there are no {kind} prompts for {split}: give files with more by --{kind}"
            )
    return requests


def read_shipped() -> list[TrainingRequest]:
    """Read every prompt that comes with SafeDraft, in nine languages, in the order of the files."""
    return [request for file, source in _FILES.items() for request in read_tables(file, source)]


def read_own(split: TrainingSplit) -> list[TrainingRequest]:
    """Read SafeDraft's own prompts of a split."""
    return [
        request for request in read_shipped() if assign_split(request.text, OWN_SHARES) == split
    ]


def read_tables(file: str, source: str) -> list[TrainingRequest]:
    """Read a file of requests: a table for each category, with a list for each kind."""
    return [
        TrainingRequest(text, kind, source, category)
        for category, table in read_data(file).items()
        for name, kind in _KINDS.items()
        for text in table.get(name, ())
    ]


def _read_all(
    specs: Iterable[str], kind: RequestKind, split: TrainingSplit
) -> list[TrainingRequest]:
    return list(dict.fromkeys(request for spec in specs for request in _read(spec, kind, split)))


def _read(spec: str, kind: RequestKind, split: TrainingSplit) -> list[TrainingRequest]:
    from safedraft.prompts.sources import find_source

    if spec == OWN:
        return [one for one in read_own(split) if (one.kind == "harmful") == (kind == "harmful")]
    return [  # may be empty: another source may have prompts
        TrainingRequest(record.request, kind, record.source, record.category)
        for record in find_source(spec).read_split(split)
    ]


def read_frames() -> list[str]:
    """Read the jailbreak frames, the templates of ``add_frame``."""
    return [frame for table in read_data("wrappers").values() for frame in table["frames"]]


def add_frame(request: str, rng: random.Random) -> str:
    """Put a request into a random jailbreak frame; noise fields are filled with random text."""
    values = {
        "request": lambda: request,
        "spaced": lambda: " ".join(request),
        "noise": lambda: _make_noise(rng),
    }
    # One pass over the frame, since a request may contain braces.
    return _FIELD.sub(lambda field: values[field[1]](), rng.choice(read_frames()))


def _make_noise(rng: random.Random) -> str:
    """Make text that looks like an optimized suffix: random pieces of words and punctuation."""
    words = _read_noise_words()
    pieces = [
        rng.choice(words)[: rng.randint(2, 9)] + rng.choice(("", " ", *_NOISE_MARKS))
        for _ in range(rng.randint(*_NOISE_PIECES))
    ]
    return "".join(rng.choice((piece, piece.title(), f" {piece}")) for piece in pieces)


@cache
def _read_noise_words() -> list[str]:
    text = " ".join(request.text for request in read_tables("ordinary", SHIPPED))
    return sorted({word for word in text.split() if word.isalpha()})


def read_openings(language: str = "en") -> list[str]:
    """Read beginnings that make a target comply; ``fill_opening`` replaces their ``{topic}``."""
    openings = read_data("openings")
    return list(openings["languages"].get(language, openings["requested"]))


def read_generic_beginnings() -> list[str]:
    """Read longer beginnings, which fit any request."""
    return list(read_data("openings")["generic"])


def read_relapses() -> list[str]:
    """Read phrases that take a refusal back before a harmful answer continues."""
    return list(read_data("openings")["relapses"])


def fill_opening(opening: str, request: str) -> str:
    """Insert the request into an opening that has a ``{topic}`` field."""
    topic = request.strip().rstrip(".?!")
    return opening.replace("{topic}", topic[:1].lower() + topic[1:])


def read_refusals(language: str = "en") -> list[str]:
    """Read the refusals that the draft learns in a language, without a leading space."""
    refusals = read_data("refusals")
    data = refusals.get(language, refusals["en"])
    return [data["opening"] + data["space"] + ending for ending in data["endings"]]


@cache
def read_data(name: str) -> dict[str, Any]:
    """Read a file of the training data by its name without the ending."""
    text = files("safedraft.training").joinpath(f"data/{name}.toml").read_text("utf-8")
    return tomllib.loads(text)
