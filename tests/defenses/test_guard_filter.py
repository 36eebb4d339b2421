"""The guard filter: what the guard is shown, what is withheld, and what is an error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guard_server import PAGE, GuardServer, serve_guard
from talking import TalkingPair, talking

import safedraft
from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.core.errors import SafeDraftError
from safedraft.defenses import make_constants
from safedraft.defenses.guard_filter import VERDICT_TOKENS, GuardConfig, guard_filter
from safedraft.text.refusals import REFUSAL

SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Good day."}]
ASKED = {"role": "user", "content": "How do kites fly?"}
BEGUN = {"role": "assistant", "content": "On the "}
ANSWER = "On the wind."


VERDICTS = {"FAIL": 500, "KEY": 401, "MUMBLE": "It depends.", "NOTHING": "", "PAGE": PAGE}


def says(messages: list[dict[str, str]]) -> str | int:
    """A verdict on the last turn, which spells what the guard is to do."""
    last = messages[-1]["content"]
    for word, verdict in VERDICTS.items():
        if word in last:
            return verdict
    return "unsafe\nS2" if "HARM" in last else "safe"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed request is sent again at once."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


@pytest.fixture(scope="module")
def server() -> Iterator[GuardServer]:
    with serve_guard(says) as guard:
        yield guard


@pytest.fixture
def guard(server: GuardServer, monkeypatch: pytest.MonkeyPatch) -> GuardServer:
    server.requests.clear()
    server.keys.clear()
    return server


def answer(
    guard: GuardServer, pair: Any, *messages: dict[str, str], read: str = "both"
) -> safedraft.GenerationResult:
    given = {"endpoint": guard.url, "guard": "a-guard", "read": read}
    constants = make_constants("guard_filter", SSDConfig(), given)
    return guard_filter(pair, messages, SamplingParams(max_new_tokens=200), constants)


def speaking(folder: Path, answer: str = ANSWER) -> TalkingPair:
    return talking(folder, lambda prompt: answer)


INPUT, OUTPUT = [ASKED["content"]], [ASKED["content"], ANSWER]


@pytest.mark.parametrize(
    ("messages", "read", "shown"),
    [
        ([ASKED], "both", [INPUT, OUTPUT]),
        ([ASKED], "input", [INPUT]),
        ([ASKED], "output", [OUTPUT]),
        ([ASKED, BEGUN], "both", [INPUT, [*INPUT, "On the "], OUTPUT]),
        ([ASKED, BEGUN], "output", [OUTPUT]),
        ([SYSTEM, ASKED], "input", [["Be brief.\n\nHow do kites fly?"]]),
        ([*EARLIER, ASKED], "output", [["Hello?", "Good day.", *OUTPUT]]),
        ([SYSTEM, *EARLIER, ASKED], "input", [["Be brief.\n\nHello?", "Good day.", *INPUT]]),
    ],
)
def test_the_guard_is_shown_the_conversation(
    guard: GuardServer,
    tmp_path: Path,
    messages: list[dict[str, str]],
    read: str,
    shown: list[list[str]],
) -> None:
    reply = answer(guard, speaking(tmp_path), *messages, read=read)
    begun = messages[-1] == BEGUN
    assert reply.text == ("wind." if begun else ANSWER)
    assert guard.conversations == shown
    request = guard.requests[0]
    assert (request["model"], request["temperature"], request["max_tokens"]) == (
        *("a-guard", 0.0),
        VERDICT_TOKENS,
    )
    roles = [turn["role"] for turn in guard.requests[-1]["messages"]]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)


HARMFUL = {"role": "user", "content": "HARM?"}
HARM_BEGUN = {"role": "assistant", "content": "HARM: "}


@pytest.mark.parametrize(
    ("messages", "said", "refused_by"),
    [
        ([HARMFUL], ANSWER, {"both", "input"}),
        ([ASKED, HARM_BEGUN], "HARM: one", {"both", "input", "output"}),
        ([ASKED], "HARM!", {"both", "output"}),
        ([ASKED], ANSWER, set()),
    ],
)
@pytest.mark.parametrize("read", ["both", "input", "output"])
def test_what_is_unsafe_is_withheld(
    guard: GuardServer,
    tmp_path: Path,
    messages: list[dict[str, str]],
    said: str,
    refused_by: set[str],
    read: str,
) -> None:
    pair = speaking(tmp_path, said)
    reply = answer(guard, pair, *messages, read=read)
    assert (reply.text == REFUSAL) is (read in refused_by)
    before_decoding = read != "output" and "HARM" in messages[-1]["content"]
    assert (pair.prompts_seen == []) is before_decoding
    figures = reply.statistics
    assert (figures.target_passes == 0) is before_decoding
    assert figures.tokens == (len(REFUSAL) if reply.text == REFUSAL else len(reply.trace))
    assert figures.seconds > 0
    assert (figures.first_token_seconds == figures.seconds) is (before_decoding or read != "input")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("FAIL", "the guard a-guard at http.* failed: .*500"),
        ("KEY", "the guard at http.* refuses the key: set SAFEDRAFT_GUARD_API_KEY"),
        ("MUMBLE", "says neither safe nor unsafe but 'It depends.'"),
        ("NOTHING", "says neither safe nor unsafe but ''"),
        ("PAGE", "says neither safe nor unsafe but ''"),
    ],
)
@pytest.mark.parametrize("read", ["input", "output"])
def test_no_verdict_is_an_error_and_never_an_answer(
    guard: GuardServer, tmp_path: Path, content: str, message: str, read: str
) -> None:
    asked = {"role": "user", "content": content if read == "input" else "Why?"}
    with pytest.raises(SafeDraftError, match=message):
        answer(guard, speaking(tmp_path, content), asked, read=read)


def test_a_missing_library_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(
        SafeDraftError, match=r"the guard needs openai: pip install 'safedraft\[eval"
    ):
        answer(GuardServer("http://nowhere/v1"), speaking(tmp_path), ASKED)


def test_an_empty_reply_is_not_read(guard: GuardServer, tmp_path: Path) -> None:
    assert answer(guard, speaking(tmp_path, ""), ASKED).text == ""
    assert guard.conversations == [INPUT]


def test_no_server_is_an_error(tmp_path: Path) -> None:
    with serve_guard(says) as gone:
        pass
    with pytest.raises(SafeDraftError, match=r"no guard answers at http://127\.0\.0\.1"):
        answer(gone, speaking(tmp_path), ASKED)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "guard_filter:endpoint=URL,guard=NAME"),
        ({"endpoint": "http://here/v1"}, "guard_filter:endpoint=URL,guard=NAME"),
        ({"guard": "a-guard"}, "guard_filter:endpoint=URL,guard=NAME"),
        ({"endpoint": "here", "guard": "a-guard"}, "'here' does not begin with http://"),
        ({"endpoint": "http://here", "guard": "g", "read": "all"}, "read: must be 'both'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(SafeDraftError, match=message):
        GuardConfig(**given)
    with pytest.raises(SafeDraftError, match=message):
        make_constants("guard_filter", SSDConfig(), given)


def test_the_key_is_of_the_environment(
    guard: GuardServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEDRAFT_GUARD_API_KEY", "secret")
    with serve_guard(says) as other:  # connections are kept for an endpoint
        answer(other, speaking(tmp_path), ASKED)
        assert set(other.keys) == {"Bearer secret"}
