"""What a user sees of long work: on a terminal of 80 columns, and where lines are printed."""

from __future__ import annotations

import codecs
import io
import os
import pty
import re
import subprocess
import sys
import termios
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import pytest
from test_cli import models  # noqa: F401
from test_train_draft import prompts  # noqa: F401

from safedraft import cli
from safedraft.core.errors import UnguardedWarning
from safedraft.models.progress import FACT, show_stages

WIDTH = 80
BAR = re.compile("[━╸╺]{8,}")
LEFT = r"(-:--:--|\d:\d\d:\d\d)"
"""Time left, which is not known at first."""
NOTE = "refusal 6.713  dense 7.041  answer 7.801  5.4 s a step"


class Screen(io.StringIO):
    """A terminal that shows what is written to it; it knows the codes that rich uses."""

    _CODE = re.compile(r"\x1b\[\??([0-9;]*)([A-Za-z])|\x1b\].*?\x1b\\|([^\x1b])", re.DOTALL)
    _BEGUN = re.compile(r"\x1b(\[[0-9;?]*|\][^\x1b]*)?\Z")

    def __init__(self) -> None:
        super().__init__()
        self._lines = [""]
        self._row = self._column = 0
        self._rest = ""
        """A code of which the end has not come yet."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        text = self._rest + text
        begun = self._BEGUN.search(text)
        self._rest = begun[0] if begun else ""
        for code in self._CODE.finditer(text.removesuffix(self._rest)):
            number, command, character = code.groups()
            if character:
                self._type(character)
            elif command == "A":
                self._row -= int(number or 1)
            elif command == "K":
                self._lines[self._row] = ""
        return len(text)

    def _type(self, character: str) -> None:
        if character == "\r":
            self._column = 0
            return
        if character == "\n" or self._column == WIDTH:
            self._row, self._column = self._row + 1, 0
            self._lines += [""] * (self._row + 1 - len(self._lines))
        if character != "\n":
            line = self._lines[self._row].ljust(self._column)
            self._lines[self._row] = line[: self._column] + character + line[self._column + 1 :]
            self._column += 1

    @property
    def lines(self) -> list[str]:
        """The lines with something on them."""
        return [line.rstrip() for line in self._lines if line.strip()]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("TERM", "xterm")
    return Screen()


@contextmanager
def shown_on(screen: Screen) -> Iterator[Any]:
    """The display of progress while standard error is this terminal."""
    with redirect_stderr(screen), show_stages() as display:
        yield display


def test_bar_count_and_time_left_are_visible_beside_any_note(screen: Screen) -> None:
    with shown_on(screen) as display:
        display.counting("training", 1, 400, NOTE)
        display.counting("training", 7, 400, f"{NOTE} {'x' * WIDTH}")
        display.live.refresh()
        row, note = screen.lines
    assert re.fullmatch(rf"training [━╸╺]{{20}} 7/400 {LEFT}", row)
    assert note.startswith(NOTE)
    assert len(note) == WIDTH


def test_a_long_stage_wraps(screen: Screen) -> None:
    stage = "downloading qwen2.5-coder-1.5b-instruct from the package index"
    with shown_on(screen) as display:
        display.loading(stage, 900_000_000, 1_900_000_000)
        display.live.refresh()
        first, *rest = screen.lines
    assert re.search(rf" [━╸╺]{{20}} 900.0 MB of 1.9 GB {LEFT}$", first)
    assert " ".join([BAR.split(first)[0].strip(), *rest]) == stage


def test_stages_of_loading_disappear(screen: Screen) -> None:
    with shown_on(screen) as display:
        for stage in ("engine cpu", "loading the target", "loading the draft"):
            display.loading(stage, 0, 0)
            display.live.refresh()
            (row,) = screen.lines
            assert row.startswith(stage)
    assert screen.lines == []


def test_a_fact_stays_visible(screen: Screen) -> None:
    with shown_on(screen) as display:
        display.loading("engine transformers: int8 is not supported", 0, FACT)
        display.loading("loading the target", 0, 0)
    assert screen.lines == ["engine transformers: int8 is not supported"]


def test_counted_stages_leave_a_line(screen: Screen) -> None:
    with suppress(KeyboardInterrupt), shown_on(screen) as display:
        display.loading("engine cpu", 0, 0)
        for done in (0, 16, 20):
            display.counting("answers", done, 20)
        for done in (0, 4):  # once more, for the checks
            display.counting("answers", done, 4)
        display.loading("loading the draft", 0, 0)
        display.counting("training", 7, 400, NOTE)
        raise KeyboardInterrupt
    assert screen.lines == ["answers 20/20", "answers 4/4", f"training 7/400  {NOTE}"]


def test_a_warning_meanwhile_stands_above_the_bar(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "showwarning", cli._show_warning)
    warnings.simplefilter("always", UnguardedWarning)
    with shown_on(screen) as display:
        display.counting("training", 7, 400, NOTE)
        display.live.refresh()
        warnings.warn("the draft has no safety adapter", UnguardedWarning, stacklevel=1)
        warning, row, note = screen.lines
    assert warning == "warning: the draft has no safety adapter"
    assert row.startswith("training ━")
    assert note == NOTE


def test_without_a_terminal_a_stage_has_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with show_stages() as display:
        for _ in range(2):
            display.loading("engine cpu", 0, 0)
        for done in range(0, 33, 16):
            display.counting("[answers]", done, 32)
        for done in (0, 2):
            display.counting("[answers]", done, 2)
        for step in range(1, 101):
            display.counting("training", step, 100, f"loss {step}")
        display.counting("states", 0, 0)
    tenths = [1, *range(10, 101, 10)]
    assert capsys.readouterr().err.splitlines() == [
        "engine cpu",
        *(f"[answers] {done}/32" for done in (0, 16, 32)),
        *(f"[answers] {done}/2" for done in (0, 2)),
        *(f"training {step}/100  loss {step}" for step in tenths),
        "states 0/0",
    ]


def in_terminal(*arguments: str) -> Iterator[list[str]]:
    """The lines on a terminal of 80 columns while a command runs, and at its end."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, WIDTH))
    hidden = ("COLUMNS", "FORCE_COLOR", "NO_COLOR")
    command = subprocess.Popen(
        [sys.executable, "-m", "safedraft", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={name: value for name, value in os.environ.items() if name not in hidden}
        | {"TERM": "xterm", "OMP_NUM_THREADS": "1"},  # models are tiny: threads would wait
    )
    os.close(theirs)
    screen, decoder = Screen(), codecs.getincrementaldecoder("utf-8")("replace")
    with suppress(OSError):  # once the command has ended
        while True:
            screen.write(decoder.decode(os.read(ours, 1 << 16)))
            yield screen.lines
    os.close(ours)
    assert command.wait() == 0, screen.lines
    yield screen.lines


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_training_is_one_display(
    models: list[str],  # noqa: F811
    prompts: list[str],  # noqa: F811
    tmp_path: Path,
) -> None:
    out = tmp_path / "adapter"
    options = ("--output", str(out), "--steps", "3", "--rank", "2", "--no-risk")
    *states, end = in_terminal("train-draft", *models, *prompts, *options)
    rows = {line for lines in states for line in lines if BAR.search(line)}
    assert all(len(list(filter(BAR.search, lines))) <= 1 for lines in states)
    stages = "beginnings of harmful answers|answers|training|replies of the draft"
    shape = re.compile(rf"(?:{stages}) [━╸╺]{{20}} \d+/\d+ {LEFT}")
    assert any(shape.fullmatch(row) for row in rows), rows  # short ones end before they are drawn
    counts = ("answers", "training 3/3  refusal", "replies of the draft")
    assert all(any(line.startswith(count) for line in end) for count in counts)
    assert not [line for line in end if BAR.search(line) or line.startswith(("engine", "loading"))]
    assert end[-1] == str(out)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_only_the_reply_remains_of_generate(models: list[str]) -> None:  # noqa: F811
    options = ("--no-adapter", "--max-new-tokens", "4", "Hi")
    *states, end = in_terminal("generate", *models, *options)
    assert any(BAR.search(line) for lines in states for line in lines)
    assert "■ the draft's token" in end[0]
