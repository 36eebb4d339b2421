"""What the playground reads from a trace, in the browser that runs its scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from browsing import browser, visit
from serving import Served, serving
from talking import talking

from safedraft.core.config import Scheme, SSDConfig
from safedraft.core.switch import Switch
from safedraft.server.settings import PLAYGROUND

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.page
__all__ = ["browser"]

INTERSECTION, UNION = Scheme.INTERSECTION, Scheme.UNION


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(talking(tmp_path_factory.mktemp("pair"), str), **PLAYGROUND) as server:
        yield server


@pytest.fixture(scope="module")
def page(browser: Browser, served: Served) -> Iterator[Page]:
    with visit(browser, served) as opened:
        yield opened


def call(page: Page, function: str, *arguments: Any) -> Any:
    script = f"async values => (await import('./trace.js')).{function}(...values)"
    return page.evaluate(script, list(arguments))


def token(**settings: Any) -> dict[str, Any]:
    usual = {
        "text": "word",
        "matched": True,
        "scheme": "intersection",
        "alpha": 0.3,
        "threshold": 0.6,
        "match_ratio": None,
        "draft_probability": 0.25,
        "target_probability": 0.5,
        "block": 4,
    }
    return usual | settings


def trace(flags: Sequence[bool], config: SSDConfig) -> list[dict[str, Any]]:
    """The trace of a reply whose positions matched like this."""
    switch = Switch(config)
    tokens = []
    for flag in flags:
        scheme, threshold = str(switch.scheme), switch.threshold
        ratio = switch.observe(flag)
        tokens.append(token(matched=flag, scheme=scheme, threshold=threshold, match_ratio=ratio))
    return tokens


def test_the_threshold_falls_while_the_scheme_stays_and_restarts_when_it_changes(
    page: Page,
) -> None:
    config = SSDConfig(bin_size=2, threshold=0.6, threshold_decay=0.25)
    flags = [True] * 4 + [False] * 2 + [False] * 2 + [True] * 2 + [True]
    bins = call(page, "splitBins", trace(flags, config))
    assert [(one["size"], one["matches"], one["scheme"]) for one in bins] == [
        (2, 2, INTERSECTION),
        (2, 2, INTERSECTION),
        (2, 0, INTERSECTION),
        (2, 0, UNION),
        (2, 2, UNION),
        (1, 1, INTERSECTION),
    ]
    assert [round(one["threshold"], 9) for one in bins] == [0.6, 0.35, 0.1, 0.6, 0.35, 0.6]
    assert [one["following"] for one in bins] == [one["scheme"] for one in bins[1:]] + [None]
    assert [one["full"] for one in bins] == [True] * 5 + [False]


@pytest.mark.parametrize(
    "config",
    [
        SSDConfig(),
        SSDConfig(bin_size=3, union_bins=3, threshold=0.9),
        SSDConfig(bin_size=1, initial_scheme=UNION, threshold_decay=0),
    ],
)
def test_bins_are_what_the_switch_goes_through(page: Page, config: SSDConfig) -> None:
    flags = [(3 * n) % 7 > 2 or n > 60 for n in range(100)]
    switch = Switch(config)
    seen = []
    for flag in flags:
        seen.append((switch.scheme, switch.threshold))
        switch.observe(flag)
    bins = call(page, "splitBins", trace(flags, config))
    assert sum(one["size"] for one in bins) == len(flags)
    for number, one in enumerate(bins):
        start = number * config.bin_size
        assert (one["scheme"], one["threshold"]) == seen[start]
        assert one["matches"] == sum(flags[start : start + one["size"]])


def test_tokens_of_the_target_alone_have_no_bins(page: Page) -> None:
    assert call(page, "splitBins", []) == []
    assert call(page, "splitBins", [token(scheme=None, threshold=None)]) == []


def bin_of(**settings: Any) -> dict[str, Any]:
    usual = {"size": 7, "matches": 2, "ratio": 2 / 7, "scheme": "intersection", "threshold": 0.6}
    return usual | {"full": True, "following": None} | settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"matches": 5, "ratio": 5 / 7, "following": "intersection"},
         "5 of 7 accepted, β 0.71, not below the threshold 0.60: stays in intersection"),
        ({"following": "union"}, "β 0.29, below the threshold 0.60: switches to union"),
        ({"scheme": "union", "following": "union"}, "below the threshold 0.60: stays in union"),
        ({"scheme": "union", "ratio": 1, "following": "union"},
         "not below the threshold 0.60: stays in union, which lasts longer"),
        ({}, "2 of 7 accepted, β 0.29, below the threshold 0.60"),
        ({"full": False, "size": 3}, "2 of 3 accepted, β 0.29 so far, threshold 0.60"),
    ],
)  # fmt: skip
def test_a_bin_is_told_in_words(page: Page, settings: dict[str, Any], words: str) -> None:
    assert call(page, "describeBin", bin_of(**settings)).endswith(words)


def test_the_chart_is_told_in_words(page: Page) -> None:
    assert "no bin is full" in call(page, "describeBins", [bin_of(full=False)])
    words = call(page, "describeBins", [bin_of(), bin_of(ratio=1, scheme="union")])
    assert words.endswith(": 0.29 against 0.60 in intersection, 1.00 against 0.60 in union.")


@pytest.mark.parametrize(
    ("schemes", "words"),
    [
        ("", ""),
        ("-", ""),
        ("iii", "intersection throughout"),
        ("u", "union throughout"),
        ("iiu", "union from token 3"),
        ("iiuui", "union from token 3, intersection from token 5"),
        ("iuiu", "union from token 2, intersection from token 3, 1 more change"),
        ("uiuiui", "intersection from token 2, union from token 3, 3 more changes"),
    ],
)
def test_schemes_are_told_in_words(page: Page, schemes: str, words: str) -> None:
    named = {"i": "intersection", "u": "union", "-": None}
    assert call(page, "describeSchemes", [token(scheme=named[one]) for one in schemes]) == words


@pytest.mark.parametrize(
    ("settings", "classes", "words"),
    [
        ({}, "token matched", "accepted in intersection"),
        ({"scheme": "union"}, "token matched", "accepted in union"),
        ({"matched": False}, "token corrected intersection", "corrected in intersection"),
        ({"matched": False, "scheme": "union"}, "token corrected union", "corrected in union"),
        ({"matched": False, "scheme": None}, "token alone", "the target’s own"),
    ],
)
def test_a_token_tells_where_it_came_from(
    page: Page, settings: dict[str, Any], classes: str, words: str
) -> None:
    one = token(**settings)
    assert call(page, "classifyToken", one) == classes
    lines = call(page, "describeToken", one).split("\n")
    assert lines[0] == words
    assert "target 0.500" in lines
    assert lines[-1] == "block 4"
    assert ("draft 0.250" in lines) == (one["scheme"] is not None)
    assert ("weight α 0.3" in lines) == (one["scheme"] is not None)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"draft_probability": 1.234e-7}, "draft 1.2e-7"),
        ({"draft_probability": None}, "draft not asked"),
        ({"text": ""}, "no text: the reply’s end, or a part of a character"),
    ],
)
def test_unusual_tokens_are_described(page: Page, settings: dict[str, Any], line: str) -> None:
    assert line in call(page, "describeToken", token(**settings)).split("\n")


def test_a_line_break_is_seen(page: Page) -> None:
    assert call(page, "classifyToken", token(text="\n\n")) == "token matched break"
    assert call(page, "classifyToken", token(text=" \n")) == "token matched"
    assert call(page, "classifyToken", token(text="")) == "token matched empty"


def test_the_cost_is_that_of_the_reply_itself(page: Page) -> None:
    statistics = {"tokens_per_second": 15.04, "tokens_per_target_pass": 3.0, "risk": 0.256}
    ssd, alone = [token(), token(matched=False)], [token(scheme=None)]
    assert call(page, "describeCost", ssd, statistics) == [
        "15.0 tokens/s",
        "2 tokens",
        "match ratio 0.50",
        "3.0 tokens per target pass",
        "risk 0.26",
    ]
    assert call(page, "describeCost", ssd, None) == ["2 tokens", "match ratio 0.50"]
    without = statistics | {"risk": None}
    assert call(page, "describeCost", alone, without) == ["15.0 tokens/s", "1 token"]
    assert call(page, "describeCost", [], None) == []
