"""What the playground draws and writes, without a browser and without Gradio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import save_tokenizer
from talking import talking
from transformers import AutoTokenizer

from safedraft.core.config import RiskConfig, SamplingParams, Scheme, SSDConfig
from safedraft.core.errors import SafeDraftError
from safedraft.core.switch import Switch
from safedraft.models.registry import DEFAULT_PAIR, choose_pair
from safedraft.rules import constants_for
from safedraft.server.playground import drawing
from safedraft.server.playground.bins import Bin, split_bins
from safedraft.server.playground.snippet import write_snippet
from safedraft.server.playground.turn import PageRequest, Turn, build_messages
from safedraft.text.detokenizer import Detokenizer
from safedraft.text.results import GenerationResult, Statistics, Token

INTERSECTION, UNION = Scheme.INTERSECTION, Scheme.UNION


def token(text: str, **settings: Any) -> Token:
    told: dict[str, Any] = {
        "matched": True,
        "scheme": INTERSECTION,
        "alpha": 0.3,
        "threshold": 0.6,
        "match_ratio": None,
        "draft_probability": 0.25,
        "target_probability": 0.5,
        "block": 4,
    }
    return Token(id=1, text=text, **(told | settings))


class Spans(HTMLParser):
    """The text of HTML, its tags, and the attributes of its spans."""

    def __init__(self, drawn: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.tags, self.spans = "", set[str](), list[dict[str, str | None]]()
        self.feed(drawn)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.spans.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


# Bins and thresholds.


def bins_of(flags: Sequence[bool], config: SSDConfig) -> list[Bin]:
    """The bins of a reply whose positions matched like this."""
    switch = Switch(config)
    tokens = []
    for flag in flags:
        scheme, threshold = switch.scheme, switch.threshold
        ratio = switch.observe(flag)
        tokens.append(
            token("x", matched=flag, scheme=scheme, threshold=threshold, match_ratio=ratio)
        )
    return split_bins(tokens)


def test_the_threshold_falls_while_the_scheme_stays_and_restarts_when_it_changes() -> None:
    config = SSDConfig(bin_size=2, threshold=0.6, threshold_decay=0.25)
    flags = [True, True, True, False, False, False, True, True, True, False, True]
    found = bins_of(flags, config)
    assert [one[:3] for one in found] == [
        (2, 2, INTERSECTION),
        (2, 1, INTERSECTION),
        (2, 0, INTERSECTION),
        (2, 2, UNION),
        (2, 1, INTERSECTION),
        (1, 1, UNION),
    ]
    assert [round(one.threshold, 9) for one in found] == [0.6, 0.35, 0.1, 0.6, 0.6, 0.6]
    assert [one.following for one in found] == [INTERSECTION] * 2 + [UNION, INTERSECTION, UNION] + [
        None
    ]


@pytest.mark.parametrize(
    "config",
    [
        SSDConfig(),
        SSDConfig(bin_size=3, union_bins=3, threshold=0.9),
        SSDConfig(bin_size=1, initial_scheme=UNION, threshold_decay=0),
    ],
)
def test_bins_are_what_the_switch_goes_through(config: SSDConfig) -> None:
    flags = [(3 * n) % 7 > 2 or n > 60 for n in range(100)]
    switch = Switch(config)
    seen = []
    for flag in flags:
        seen.append((switch.scheme, switch.threshold))
        switch.observe(flag)
    found = bins_of(flags, config)
    assert sum(one.positions for one in found) == len(flags)
    for number, one in enumerate(found):
        start = number * config.bin_size
        assert (one.scheme, one.threshold) == seen[start]
        assert one.matches == sum(flags[start : start + one.positions])
    assert not bins_of([], config)


# Tokens.


@pytest.mark.parametrize(
    ("settings", "classes", "words"),
    [
        ({}, "token matched", "matched in intersection"),
        ({"scheme": UNION}, "token matched", "matched in union"),
        ({"matched": False}, "token corrected intersection", "corrected in intersection"),
        ({"matched": False, "scheme": UNION}, "token corrected union", "corrected in union"),
        (
            {"matched": False, "scheme": None, "draft_probability": None},
            "token alone",
            "the target’s own",
        ),
    ],
)
def test_a_token_tells_where_it_came_from(
    settings: dict[str, Any], classes: str, words: str
) -> None:
    (span,) = Spans(drawing.draw_token(token("word", **settings))).spans
    assert span["class"] == classes
    lines = str(span["data-details"]).split("\n")
    assert lines[0] == words
    assert "target 0.500" in lines
    assert lines[-1] == "block 4"
    assert ("draft 0.250" in lines) == (settings.get("scheme", INTERSECTION) is not None)
    assert ("weight α 0.3" in lines) == (settings.get("scheme", INTERSECTION) is not None)


def test_unlikely_tokens_have_a_probability_too() -> None:
    assert "draft 1.2e-07" in drawing.describe_token(token("x", draft_probability=1.234e-7))


@pytest.mark.parametrize(
    "said",
    [
        "<script>alert(1)</script>",
        "a & b &amp; c",
        "\"quoted\"\n\n'too'",
        "${value} {{value}}",
        "‮x",
    ],
)
def test_what_was_said_is_text_whatever_it_looks_like(said: str) -> None:
    for drawn in (
        drawing.draw_token(token(said)),
        drawing.draw_prefill(said),
        drawing.draw_code(said),
        drawing.draw_problem(said),
    ):
        found = Spans(drawn)
        assert found.tags <= {"span", "pre", "button"}
        assert found.text.removeprefix("Copy") == said
    assert Spans(drawing.draw_question(said)).text == f"You {said}"


def test_characters_split_over_tokens_stay_whole(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    said = "é 😀!"
    reader = Detokenizer(tokenizer, [])
    texts = [reader.push(id) for id in tokenizer.encode(said)]
    drawn = Spans("".join(drawing.draw_token(token(text)) for text in texts))
    assert drawn.text == said
    assert len(drawn.spans) == len(said.encode())
    empty = [span for span in drawn.spans if "empty" in str(span["class"])]
    assert len(empty) == 4  # a byte of the first character, three of the second
    assert all("no text" in str(span["data-details"]) for span in empty)


def test_a_line_break_is_seen() -> None:
    assert drawing.choose_classes(token("\n\n")) == "token matched break"
    assert drawing.choose_classes(token(" \n")) == "token matched"


# The chart and figures.


def svg(bins: list[Bin]) -> ElementTree.Element:
    drawn = drawing.draw_chart(bins, 7)
    return ElementTree.fromstring(
        drawn[drawn.index("<svg") : drawn.index("</svg>") + len("</svg>")]
    )


def test_the_chart_has_a_bar_and_a_threshold_for_each_bin() -> None:
    config = SSDConfig(bin_size=2, threshold_decay=0.2)
    bins = bins_of([True, True, True, False, False, False, True], config)
    picture = svg(bins)
    groups = picture.findall("g")
    assert [group.get("class") for group in groups] == [
        "bin intersection",
        "bin intersection",
        "bin intersection",
        "bin union open",
    ]
    thresholds = [float(group.findall("line")[0].get("y1", "nan")) for group in groups]
    assert thresholds[0] < thresholds[1] < thresholds[2]  # downwards
    assert thresholds[3] == thresholds[0]
    heights = [float(group.findall("rect")[1].get("height", "nan")) for group in groups]
    assert heights[0] == 2 * heights[1]
    assert [len(group.findall("line")) for group in groups] == [1, 1, 2, 1]
    assert "1.00, 0.50, 0.00" in str(picture.get("aria-label"))
    assert "changed 1 time; it is union now" in str(picture.get("aria-label"))


def test_a_long_chart_is_as_wide_as_its_bins_need() -> None:
    picture = svg(bins_of([True] * 2048, SSDConfig()))
    assert picture.get("style") == f"min-width:{-(-2048 // 7) * 8}px"
    assert len(picture.findall("g")) == -(-2048 // 7)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (
            Bin(7, 5, INTERSECTION, 0.6, INTERSECTION),
            "not below the threshold 0.60: stays in inter",
        ),
        (
            Bin(7, 2, INTERSECTION, 0.6, UNION),
            "β 0.29, below the threshold 0.60: switches to union",
        ),
        (Bin(7, 2, UNION, 0.6, UNION), "below the threshold 0.60: stays in union."),
        (Bin(7, 7, UNION, 0.6, INTERSECTION), "7 of 7 matched, β 1.00, not below"),
        (Bin(7, 7, UNION, 0.6, UNION), "stays in union, which lasts longer."),
    ],
)
def test_the_last_bin_is_told_in_words(one: Bin, words: str) -> None:
    assert words in drawing.describe_last_bin([one])


def test_nothing_is_told_of_what_is_not_there() -> None:
    assert drawing.describe_last_bin([]) == ""
    assert "not full" in drawing.describe_last_bin([Bin(3, 2, INTERSECTION, 0.6, None)])
    assert "no bin is full" in drawing.describe_chart([], 7)
    assert drawing.draw_figures(GenerationResult(), "waits") == '<p class="figures">waits</p>'


def test_figures_are_of_the_reply_itself() -> None:
    cost = Statistics(tokens=30, blocks=10, matches=24, seconds=2.0)
    reply = GenerationResult(trace=[token("a")], statistics=cost)
    assert Spans(drawing.draw_figures(reply, "")).text == (
        "15.0 tokens/s · 30 tokens · 80% matched · 3.0 tokens/target pass"
    )
    alone = GenerationResult(trace=[token("a", scheme=None)], statistics=cost)
    assert (
        Spans(drawing.draw_figures(alone, "stopped")).text == "15.0 tokens/s · 30 tokens · stopped"
    )


# Conversations and code.


def test_a_conversation_goes_on_with_what_was_said() -> None:
    turns = [Turn("one", "", "first", ""), Turn("two", "", "", ""), Turn("three", "Sure", ".", "")]
    assert build_messages(turns, "four", "Well") == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "Sure."},
        {"role": "user", "content": "four"},
        {"role": "assistant", "content": "Well"},
    ]
    with pytest.raises(SafeDraftError, match="empty"):
        build_messages([], " ", "")


def test_what_begins_the_reply_of_a_pair_that_thinks_is_reasoning() -> None:
    user = {"role": "user", "content": "four"}
    begun = {"role": "assistant", "content": "", "reasoning": "Well"}
    assert build_messages([], "four", "Well", thinks=True) == [user, begun]
    assert build_messages([], "four", "", thinks=True) == [user]


def asked(compare: bool = False, **sampling: Any) -> PageRequest:
    prompt, prefill = "Say \"hi\" & \\ <b>\n'twice'", "Sure:\n"
    config = SSDConfig(alpha_union=0.7, prefill_scheme=UNION, union_bins=4)
    given = SamplingParams(**({"max_new_tokens": 9} | sampling))
    return PageRequest(prompt, prefill, build_messages([], prompt, prefill), given, config, compare)


class Recorded:
    """In place of ``safedraft``: what the code calls it with."""

    Scheme, SSDConfig, SamplingParams = Scheme, SSDConfig, SamplingParams
    RiskConfig = RiskConfig

    def __init__(self) -> None:
        self.loaded: tuple[Any, ...] = ()
        self.generated: list[tuple[Any, dict[str, Any]]] = []

    def load_pair(self, *names: str, **named: str) -> Recorded:
        self.loaded = (*names, named)
        return self

    def generate(self, messages: Any, **settings: Any) -> GenerationResult:
        self.generated.append((messages, settings))
        return GenerationResult()


def run(code: str) -> Recorded:
    recorded, importing = Recorded(), "import safedraft\n"
    assert code.startswith(importing)
    exec(compile(code.removeprefix(importing), "snippet", "exec"), {"safedraft": recorded})
    return recorded


@pytest.mark.parametrize("reads_risk", [True, False])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "seed": 12}])
def test_the_code_repeats_the_request(
    tmp_path: Path, sampling: dict[str, Any], reads_risk: bool
) -> None:
    request = asked(**sampling)
    pair = talking(tmp_path, str)
    recorded = run(write_snippet(pair if reads_risk else replace(pair, probe=None), request))
    assert recorded.loaded == ({"target": "target", "draft": "draft"},)
    ((messages, settings),) = recorded.generated
    assert messages == request.messages
    kind = RiskConfig if reads_risk else SSDConfig
    assert settings == {"sampling": request.sampling, "config": constants_for(kind, request.config)}


def test_the_code_compares_where_the_page_does(tmp_path: Path) -> None:
    recorded = run(write_snippet(talking(tmp_path, str), asked(compare=True)))
    assert [settings.get("rule") for _, settings in recorded.generated] == [None, "target_only"]


@pytest.mark.parametrize(
    ("chosen", "loaded"),
    [
        ({}, (DEFAULT_PAIR, {})),
        ({"use_adapter": False}, (DEFAULT_PAIR, {"use_adapter": False})),
        ({"adapter": "other"}, (DEFAULT_PAIR, {"adapter": "other"})),
        ({"target": "larger"}, (DEFAULT_PAIR, {"target": "larger"})),
        (
            {"target": "a", "draft": "b", "adapter": "c"},
            ({"target": "a", "draft": "b", "adapter": "c"},),
        ),
        (
            {"target": "a", "draft": "b", "use_adapter": False},
            ({"target": "a", "draft": "b", "use_adapter": False},),
        ),
    ],
)
def test_the_code_loads_what_was_served(
    tmp_path: Path, chosen: dict[str, Any], loaded: tuple[Any, ...]
) -> None:
    spec = choose_pair(**chosen)
    recorded = run(write_snippet(replace(talking(tmp_path, str), spec=spec), asked()))
    assert recorded.loaded == loaded
    *names, arguments = loaded
    assert choose_pair(*names, **arguments) == spec
