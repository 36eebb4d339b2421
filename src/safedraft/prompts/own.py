"""Sources of requests written for SafeDraft to which attacks are applied, with their controls."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.resources import files
from typing import Any

from safedraft.models.progress import ReportProgress
from safedraft.prompts.sources import REPORT_ONLY, Record, Source


def _load_code(name: str, report: ReportProgress) -> Iterator[Record]:
    """Read a file of requests by category: ``category = [request, …]``."""
    for category, requests in _read(name).items():
        for request in requests:
            yield Record(request, name, category=category)


def _load_languages(name: str, report: ReportProgress) -> Iterator[Record]:
    """Read a file of requests by language and category, with a table for each language."""
    for language, categories in _read(name).items():
        for category, requests in categories.items():
            for request in requests:
                yield Record(request, name, category=category, language=language)


def _read(name: str) -> dict[str, Any]:
    text = files("safedraft.prompts").joinpath(f"data/{name}.toml").read_text("utf-8")
    return tomllib.loads(text)


def _source(
    name: str, about: str, load: Callable[[str, ReportProgress], Iterable[Record]]
) -> Source:
    return Source(name, f"our own: {about}", REPORT_ONLY, partial(load, name))


harmful_code = _source("harmful_code", "code with a harmful purpose", _load_code)
harmless_code = _source("harmless_code", "code with a harmless purpose", _load_code)
harmful_languages = _source(
    "harmful_languages", "harmful requests in eight languages", _load_languages
)
harmless_languages = _source(
    "harmless_languages", "everyday requests and look-alikes in eight languages", _load_languages
)
harmful_plain_words = _source(
    "harmful_plain_words", "harmful requests in plain words, in three languages", _load_languages
)
harmless_trigger_words = _source(
    "harmless_trigger_words",
    "harmless requests in the words of harmful ones, in three languages",
    _load_languages,
)
