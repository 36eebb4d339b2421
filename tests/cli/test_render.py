"""What replies look like in a terminal: words, colors, verdicts, bins; and counts with nouns."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from talking import TalkingPair, answering, scripted_pair, talking

from safedraft.cli.compare import compare, compute_speedup
from safedraft.cli.doctor import _print_command, print_checks
from safedraft.cli.pairs import print_pairs
from safedraft.cli.render import (
    BinChart,
    arrange_panels,
    color_tokens,
    format_summary,
    make_console,
    make_legend,
    make_panel,
)
from safedraft.cli.verdict import describe_schemes, describe_verdict
from safedraft.cli.writing import WordWriter, write_reply
from safedraft.core.config import SamplingParams
from safedraft.core.counts import format_count
from safedraft.models.check import Check
from safedraft.models.registry import PairSpec
from safedraft.text.messages import conversation
from safedraft.text.results import FinishReason, GenerationResult, Statistics, Token

RED, BLUE = "\x1b[31m", "\x1b[34m"


def terminal(width: int, *, colors: bool = False) -> Console:
    """A terminal in memory; ``written`` says what it shows."""
    system: Any = "standard" if colors else None
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, color_system=system, highlight=False
    )


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def write(width: int, *pieces: str) -> list[str]:
    """The lines of a text that comes in pieces."""
    console = terminal(width)
    writer = WordWriter(console)
    for piece in pieces:
        writer.write(piece, "")
    writer.end_line()
    return written(console).splitlines()


def token(
    text: str = "",
    scheme: str | None = "intersection",
    *,
    matched: bool = True,
    ratio: float | None = None,
    threshold: float | None = 0.6,
) -> Token:
    return Token(1, text, matched, scheme, 0.8, threshold, ratio, 0.5, 0.5, 0)


def reply_of(
    text: str,
    *schemes: str | None,
    finish_reason: FinishReason = "stop",
    tokens_per_second: int = 9,
) -> GenerationResult:
    cost = Statistics(tokens=tokens_per_second, seconds=1.0)
    return GenerationResult(text, finish_reason, [token(scheme=one) for one in schemes], cost)


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("width", [9, 12, 20, 80])
def test_no_word_is_cut_however_it_comes(width: int, size: int) -> None:
    text = "one three fourteen, and six\nfive  seven\n\n  eleven (ten)"
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    lines = write(width, *pieces)
    assert max(map(len, lines)) <= width
    assert " ".join(lines).split() == text.split()
    if width == 80:
        assert lines == text.splitlines()


def test_a_word_moves_to_the_next_line_with_its_color() -> None:
    console = terminal(12, colors=True)
    writer = WordWriter(console)
    for piece, style in [("an un", "red"), ("believ", "blue"), ("able", "red"), (" end", "")]:
        writer.write(piece, style)
    writer.end_line()
    off = "\x1b[0m"
    assert written(console) == (f"{RED}an{off}\n{RED}un{off}{BLUE}believ{off}{RED}able{off}\nend\n")


def test_long_words_wide_characters_and_tabs() -> None:
    assert write(5, "a " + "b" * 12, " c") == ["a", "bbbbb", "bbbbb", "bb c"]
    assert write(5, "数学数", "学 a") == ["数学", "数学", "a"]
    assert write(20, "a\tb", "\n\tc") == ["a       b", "        c"]


def test_a_long_word_is_cut_by_the_width_of_its_characters() -> None:
    accented = "e\u0301"  # two code points, one column
    assert write(10, accented * 25) == [accented * 10, accented * 10, accented * 5]


def test_a_word_is_shown_as_soon_as_it_has_ended() -> None:
    console = terminal(20)
    writer = WordWriter(console)
    writer.write("one two", "")
    assert written(console) == "one"
    writer.write(" ", "")
    assert written(console) == "one two"


def test_force_color_colors_a_file_and_leaves_its_lines_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "12")
    make_console().print("[green]one two three four five[/]")
    assert capsys.readouterr().out == "\x1b[32mone two three four five\x1b[0m\n"
    monkeypatch.delenv("FORCE_COLOR")
    make_console().print("[green]one two three four five[/]")
    assert capsys.readouterr().out == "one two three four five\n"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_shows_how_a_reply_has_begun_and_a_file_its_text_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # which makes a terminal of a file for rich
    monkeypatch.setenv("COLUMNS", "12")
    monkeypatch.setenv("LINES", "25")  # a dumb terminal has the usual size otherwise
    monkeypatch.setenv("TERM", "dumb")  # without codes
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    pair = talking(tmp_path, lambda prompt: "Sure,  this is it\tand more")
    console = make_console()
    write_reply(pair.stream("Hi", prefill="Sure,"), "Sure,", console)
    text = "Sure,  this\nis it   and\nmore\n" if is_terminal else "  this is it\tand more\n"
    assert written(console) == text


def test_what_a_stop_string_holds_back_is_written_when_a_reply_is_stopped(tmp_path: Path) -> None:
    pair = talking(tmp_path, lambda prompt: "abcxy")
    console = Console(file=io.StringIO())
    stream = pair.stream("Hi", sampling=SamplingParams(max_new_tokens=4, stop=("xyz",)))
    write_reply(stream, "", console)
    assert written(console) == f"{stream.result.text}\n" == "abcx\n"


def test_a_model_cannot_drive_the_terminal() -> None:
    text = "a\x1b[2Jb\nc\td\x9b"
    assert color_tokens([token(text)]).plain == "a[2Jb\nc\td"
    assert color_tokens([token(text)], folded=True).plain == "░░░░░\n░\t░"
    assert write(20, text) == ["a[2Jb", "c       d"]


@pytest.mark.parametrize("width", [30, 40, 80, 120])
def test_the_legend_is_whole_at_any_width(width: int) -> None:
    console = terminal(width)
    console.print(make_legend())
    lines = written(console).splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(" ".join(lines).split())
    assert words.count("■") == 3
    assert words.endswith("corrected in union (safety)")


@pytest.mark.parametrize(
    ("schemes", "words"),
    [
        ("", ""),
        ("iii", "intersection throughout"),
        ("uu", "union throughout"),
        ("iiu", "union from token 3"),
        ("uuiiu", "intersection from token 3, union from token 5"),
        ("iuiu", "union from token 2, intersection from token 3, 1 more change"),
        ("iuiui", "union from token 2, intersection from token 3, 2 more changes"),
    ],
)
def test_schemes_in_words(schemes: str, words: str) -> None:
    names = {"i": "intersection", "u": "union"}
    assert describe_schemes([token(scheme=names[letter]) for letter in schemes]) == words
    assert describe_schemes([token(scheme=None) for _ in schemes]) == ""
    paused = [token(scheme=scheme) for scheme in ("intersection", None, "intersection")]
    assert describe_schemes(paused) == "intersection throughout"


def test_the_verdict_says_safety_first() -> None:
    asked = conversation("How do I pick a lock?")
    union = "intersection", "union"
    assert describe_verdict(reply_of("I'm sorry, but I can't help with that.", *union), asked) == (
        "Refused · union from token 2"
    )
    answer = "Push a pick into the lock and turn it until the pins are set."
    assert describe_verdict(reply_of(answer, None), asked) == "Answered"
    assert describe_verdict(reply_of("", *union), asked).startswith("Neither answered nor refused")
    stopped = reply_of(answer, *union, finish_reason="interrupted")
    assert describe_verdict(stopped, asked) == "Stopped · union from token 2"


def test_speed_is_compared_between_replies_that_end_alike() -> None:
    asked = conversation("How do I pick a lock?")
    answer = "Push a pick into the lock and turn it until the pins are set."
    replies = {"target_only": reply_of(answer, None), "ssd": reply_of(answer, "union")}
    replies["ssd"].statistics.seconds = 0.5
    assert compute_speedup(replies, asked) == 2
    replies["ssd"].text = "I'm sorry, but I can't help with that."
    assert compute_speedup(replies, asked) is None


@pytest.fixture
def parted(tmp_path: Path) -> TalkingPair:
    """The target answers, the draft refuses."""
    tokenizer = talking(tmp_path / "tokenizer", str).target.tokenizer
    assert tokenizer is not None
    says = ("The key is under the mat of the neighbor.", "I'm sorry, but I can't help with that.")
    target, draft = (answering(tokenizer, lambda _, one=one: one, []) for one in says)
    return scripted_pair(tokenizer, target, draft)


@pytest.mark.parametrize("width", [40, 80])
def test_compare_shows_the_legend_the_verdicts_and_whole_words(
    parted: TalkingPair, width: int
) -> None:
    console = Console(file=io.StringIO(), width=width)
    replies: dict[str, GenerationResult] = {}
    compare(
        parted, conversation("Where is it?"), SamplingParams(max_new_tokens=60), console, replies
    )
    lines = written(console).splitlines()
    assert max(map(len, lines)) <= width
    shown = written(console)
    assert shown.index("corrected in union") < shown.index("the target alone")
    assert "Answered" in shown
    verdict = describe_verdict(replies["ssd"], conversation("Where is it?"))
    assert verdict.split(" · ")[0] in shown
    beside = [line for line in lines if "the target alone" in line and "SSD" in line]
    assert len(beside) == (width >= 60)
    if width < 60:
        assert "The key is under the mat of the" in shown


@pytest.mark.parametrize(
    ("rule", "title"),
    [("risk", "SSD with the request's risk"), ("ssd", "SSD alone"), ("easd", "the rule easd")],
)
def test_a_comparison_names_the_rule_that_decoded(
    parted: TalkingPair, monkeypatch: pytest.MonkeyPatch, rule: str, title: str
) -> None:
    monkeypatch.setattr(TalkingPair, "rule", rule)
    console, replies = terminal(80), dict[str, GenerationResult]()
    compare(
        parted, conversation("Where is it?"), SamplingParams(max_new_tokens=60), console, replies
    )
    assert list(replies) == ["target_only", rule]
    assert f"─ {title} ─" in written(console)
    assert "Decoding" in written(console)
    assert "stopped" not in written(console)  # a reply that has not ended is not called so


@pytest.mark.parametrize("width", [40, 80])
def test_the_list_of_pairs_breaks_no_name(width: int) -> None:
    console = terminal(width)
    names = ("owner/a-target-with-a-long-name", "owner/a-draft-with-a-long-name", "an-adapter")
    target, draft, adapter = names
    spec = PairSpec(name="own", target=target, draft=draft, adapter=adapter)
    print_pairs({"own": spec, "qwen2.5-coder": spec}, console)
    words = written(console).split()
    assert all(words.count(name) == 2 for name in names)
    assert "qwen2.5-coder (the default pair)" in written(console)
    assert "own (the default pair)" not in written(console)


def test_generate_explains_the_colors_before_the_text(
    run: Any,
    parted: TalkingPair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("safedraft.pair.load.load_spec", lambda *_, **__: parted)
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", "40")
    order: list[str] = []
    monkeypatch.setattr("safedraft.cli.render.make_legend", lambda: order.append("legend") or "")
    monkeypatch.setattr(
        "safedraft.cli.writing.write_reply", lambda *_: order.append("text") or None
    )
    assert run("generate", "Where?")[0] == 0
    assert order == ["legend", "text"]


def draw(width: int, *bins: tuple[str, float, float | None], colors: bool = False) -> list[str]:
    console = terminal(width, colors=colors)
    trace = [token(scheme=scheme, ratio=ratio, threshold=line) for scheme, ratio, line in bins]
    console.print(BinChart([token(), *trace, token()]))
    return written(console).splitlines()


def test_bins_are_bars_with_their_thresholds() -> None:
    bins = [("intersection", 1.0, 0.6), ("intersection", 0.5, 0.5), ("union", 0.0, 0.0)]
    assert draw(80, *bins, ("union", 0.15, None)) == [
        "match ratio per bin (i: intersection, u: union, ─: threshold)",
        "1 █       ",
        "  █─ ▁    ",
        "  █ █     ",
        "0 █ █ ▁▁▅ ",
        "  i i u u ",
    ]


def test_bins_have_the_color_of_their_scheme() -> None:
    lines = draw(80, ("intersection", 1.0, 0.6), ("union", 1.0, 0.6), colors=True)
    yellow, magenta = "\x1b[1;33m", "\x1b[1;35m"
    assert f"{yellow}█" in lines[1]
    assert f"{magenta}█" in lines[1]
    assert f"{yellow}i" in lines[-1]
    assert f"{magenta}u" in lines[-1]


def test_bins_that_do_not_fit_are_below_the_others() -> None:
    lines = draw(12, *[("union", 1.0, 0.5)] * 7)
    assert max(map(len, lines)) <= 12
    assert [line for line in lines if "u u" in line] == ["  u u u u u ", "  u u "]
    assert draw(80) == ["match ratio per bin: no full bin"]


def test_panels_show_bins_and_the_end_of_a_cut_reply() -> None:
    reply = reply_of("a", "union", finish_reason="length", tokens_per_second=1)
    assert format_summary(reply).plain == "1 token · 1.0 tokens/s · cut at its limit of tokens"
    console = terminal(40)
    console.print(arrange_panels([make_panel("SSD", "Refused", reply)], 40))
    assert "Refused" in written(console)


def test_checks_are_indented_in_a_terminal_and_one_line_elsewhere() -> None:
    check = Check("context", "warning", "a text [b] of many words that goes on and on to the end")
    narrow, file = terminal(30), Console(file=io.StringIO(), soft_wrap=True)
    for console in (narrow, file):
        print_checks([check], console)
    assert written(file) == f"! context: {check.detail}\n"
    first, *others = written(narrow).splitlines()
    assert first.startswith("! context: a text [b]")
    assert all(line.startswith("  ") and len(line) <= 30 for line in others)
    assert len(others) > 1


def test_a_command_can_be_copied_at_any_width() -> None:
    words = ["generate", "--target", "owner/large", "--compare", "A request"]
    narrow, file = terminal(30), Console(file=io.StringIO(), soft_wrap=True)
    for console in (narrow, file):
        _print_command(words, console)
    assert written(file) == (
        "Next: safedraft generate --target owner/large --compare 'A request'\n"
    )
    assert max(map(len, written(narrow).splitlines())) <= 30
    assert written(narrow).replace("\\\n      ", "") == written(file)


def test_counts_have_the_right_noun() -> None:
    assert format_count(1, "prompt") == "1 prompt"
    assert format_count(0, "reply", "replies") == "0 replies"
    assert format_count(1, "reply", "replies") == "1 reply"
    assert format_count(1024, "token") == "1,024 tokens"
