"""``safedraft chat``: from a pipe, and in a terminal with its keys."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.templates import TRAITS
from talking import TalkingPair, talking
from talking_command import QUESTION, answer
from terminals import Terminal, open_terminal

TESTS = Path(__file__).parents[1]

Chat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pair(tmp_path: Path) -> TalkingPair:
    return talking(tmp_path / "tokenizer", answer)


@pytest.fixture
def chat(run: Any, pair: TalkingPair, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Chats with lines from a pipe; gives exit code, stdout, stderr."""

    def send(*lines: str, options: tuple[str, ...] = (), by: TalkingPair = pair) -> Any:
        monkeypatch.setattr("safedraft.pair.load.load_spec", lambda *_, **__: by)
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        return run("chat", *options)

    return send


def roles_of(prompt: str) -> str:
    """The first letters of the roles of a prompt's turns."""
    return "".join(turn[0] for turn in prompt.split("<|start|>")[1:])


def test_the_conversation_is_kept_until_it_is_reset(chat: Chat, pair: TalkingPair) -> None:
    options = ("--system", "Be brief.")
    code, out, err = chat("hello", "", "again", "/reset", "new", "/quit", "never", options=options)
    assert code == 0
    assert [roles_of(prompt) for prompt in pair.prompts_seen] == ["su", "suau", "su"]
    assert out == "I heard hello\nI heard again\nI heard new\n"
    assert err.count("tokens/s") == 3


def test_a_pipe_gets_replies_alone_and_unwrapped(chat: Chat) -> None:
    message = "a word and " * 20 + "the end"
    _, out, err = chat(message)
    assert out == f"I heard {message}\n"
    assert "you:" not in out + err
    assert "corrected" not in out + err


def test_a_system_prompt_is_set_and_shown_and_reset(chat: Chat, pair: TalkingPair) -> None:
    _, _, err = chat("/system", "/system Be  brief.", "hello", "/system", "/reset", "again")
    assert [roles_of(prompt) for prompt in pair.prompts_seen] == ["su", "u"]
    assert "Be  brief.<|end|>" in pair.prompts_seen[0]
    assert err.splitlines()[0] == "There is no system prompt."
    assert err.count("System prompt: Be  brief.") == 2


def test_a_prefill_begins_one_reply_and_stays_in_the_conversation(
    chat: Chat, pair: TalkingPair
) -> None:
    _, out, err = chat("/prefill I heard", "hello", "again")
    assert out == " hello\nI heard again\n"
    assert "The next reply begins: I heard" in err
    assert "<|start|>assistant\nI heard hello<|end|>" in pair.prompts_seen[-1]


def test_a_prefill_can_be_taken_back(chat: Chat) -> None:
    _, out, err = chat("/prefill I heard", "/prefill", "hello")
    assert out == "I heard hello\n"
    assert "The next reply begins by itself." in err


@pytest.mark.parametrize("command", ["/system Be brief.", "/prefill Sure"])
def test_what_a_template_cannot_have_is_refused_and_changes_nothing(
    chat: Chat, tmp_path: Path, command: str
) -> None:
    template = TRAITS["no system role"] if "system" in command else TRAITS["opens reasoning"]
    refusing = talking(tmp_path / "other", answer, template)
    _, _, err = chat(command, "/system", by=refusing)
    assert "System prompt: " not in err
    assert "The next reply begins" not in err
    assert len(err.splitlines()) == 2


def test_an_unknown_command_is_refused_in_one_line(chat: Chat, pair: TalkingPair) -> None:
    code, out, err = chat("/clear all", "/reset now", "//etc/hosts")
    assert code == 0
    assert err.splitlines()[:2] == [
        "There is no command /clear, only /system, /prefill, /reset, /help and /quit.",
        "/reset takes no text.",
    ]
    assert out == "I heard /etc/hosts\n"
    assert len(pair.prompts_seen) == 1


def test_help_explains_every_command_and_key(chat: Chat) -> None:
    _, out, err = chat("/help")
    assert out == ""
    first = [line.split()[0] for line in err.splitlines() if not line.startswith(" ")]
    assert first[:5] == ["/system", "/prefill", "/reset", "/help", "/quit"]
    assert first[5:] == ['"""', "//", "Ctrl-C", "Ctrl-D"]


def test_a_message_may_have_several_lines(chat: Chat) -> None:
    _, out, _ = chat('"""', '"""', '"""', "/one", "", "  two", '"""', '"""', "three")
    assert out == "I heard /one\n\n  two\nI heard three\n"


def test_a_full_conversation_asks_for_a_reset(chat: Chat, pair: TalkingPair) -> None:
    small = replace(pair, context_length=100)
    message = "a" * 40
    _, out, err = chat("b" * 90, message, message, "/reset", message, by=small)
    problems = [line for line in err.splitlines() if "tokens/s" not in line]
    assert "shorten it" in problems[0]
    assert problems[1] == "The context is full. Use /reset to start a new conversation."
    assert problems[2].startswith("The conversation is full: it has ")
    assert problems[2].endswith("for 100. Use /reset to start a new one.")
    assert out.splitlines()[0] == out.splitlines()[-1]
    assert out.startswith("I heard aaa")


def test_closed_input_ends_the_chat(
    run: Any,
    pair: TalkingPair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("safedraft.pair.load.load_spec", lambda *_, **__: pair)
    monkeypatch.setattr(sys, "stdin", None)
    assert run("chat")[:2] == (0, "")


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """The chat in a terminal of 40 columns, at its first prompt."""
    command = [sys.executable, str(Path(__file__).parent / "talking_command.py"), "chat"]
    path = os.pathsep.join(map(str, (TESTS, TESTS.parent / "src")))
    with open_terminal(command, columns=40, PYTHONPATH=path) as opened:
        opened.wait_for("you: ")
        yield opened


@pytest.mark.slow
def test_the_keys_of_the_chat(terminal: Terminal) -> None:
    beginning = terminal.shown
    for color in ("the draft's token", "in intersection", "in union"):
        assert beginning.count(color) == 1
    terminal.type("Slowly, a river that goes to the sea and ends there\r")
    terminal.wait_for("I heard Slowly")
    terminal.type("\x03")
    terminal.wait_for("stopped")
    terminal.wait_for("you: ")
    terminal.type(f"{QUESTION}\r")
    terminal.wait_for("I heard I heard Slowly")
    assert "ends there" not in terminal.wait_for("you: ")
    terminal.type("xb\x1b[D\x7fa\r")  # left, backspace
    terminal.wait_for("I heard ab")
    terminal.wait_for("you: ")
    terminal.type("\x1b[A\x1b[A\r")  # the line before the last one
    terminal.wait_for("I heard I heard ab")
    terminal.wait_for("you: ")
    time.sleep(0.5)  # readline misses a signal between showing the prompt and waiting for keys
    terminal.type("\x03")
    assert terminal.end() == 130
    assert "Traceback" not in terminal.shown


@pytest.mark.slow
def test_words_stay_whole_pasted_lines_are_one_message_and_ctrl_d_ends_the_chat(
    terminal: Terminal,
) -> None:
    words = "incomprehensible considerations notwithstanding understanding"
    terminal.type(f"{words}\r")
    terminal.wait_for("I heard")
    lines = ("I heard" + terminal.wait_for("tokens")).splitlines()[:-1]
    assert lines == ["I heard incomprehensible considerations", "notwithstanding understanding"]
    terminal.wait_for("you: ")
    terminal.type("\x1b[200~pasted\nlines\x1b[201~\r")
    terminal.wait_for("I heard pasted\nlines")
    terminal.wait_for("you: ")
    terminal.type("\x04")
    assert terminal.end() == 0
