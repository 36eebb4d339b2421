"""Every defense keeps the system message, earlier turns, a begun reply and an empty one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from talking import TalkingPair, talking, write_harmless_probe

import safedraft
from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.defenses import find_defense, list_defenses, make_constants
from safedraft.models.endpoint import Endpoint
from safedraft.text.refusals import REFUSAL

SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Good day."}]
ASKED = {"role": "user", "content": "How do kites fly?"}
BEGUN = {"role": "assistant", "content": "On {the} "}
CONVERSATIONS: dict[str, list[dict[str, str]]] = {
    "a system message": [SYSTEM, ASKED],
    "earlier turns": [*EARLIER, ASKED],
    "a begun reply": [ASKED, BEGUN],
    "all of them": [SYSTEM, *EARLIER, ASKED, BEGUN],
}
REWORDED = "Why do {kites} fly?"
REWRITES = {"in_context", "paraphrase", "self_reminder"}
ANSWERING = [name for name in list_defenses() if name != "always_refuse"]


@pytest.fixture(autouse=True)
def guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endpoint, "ask", lambda *_: "safe")


def make_pair(folder: Path, answer: str) -> TalkingPair:
    def says(prompt: str) -> str:
        if "yes or no" in prompt:
            return "No."
        return REWORDED if "other words" in prompt else answer

    return talking(folder, says)


def reply_to(name: str, pair: Any, messages: list[dict[str, str]]) -> safedraft.GenerationResult:
    given = {"endpoint": "http://localhost/v1", "guard": "a-guard"}
    if name == "ada_probe":
        given["probe"] = write_harmless_probe(pair)
    constants = make_constants(name, SSDConfig(), given)
    return find_defense(name)(pair, messages, SamplingParams(max_new_tokens=200), constants)


def render(messages: list[dict[str, str]]) -> str:
    return "".join(f"<|start|>{m['role']}\n{m['content']}<|end|>\n" for m in messages)


def contains_in_order(prompt: str, texts: list[str]) -> bool:
    at = 0
    for text in texts:
        at = prompt.find(text, at)
        if at < 0:
            return False
        at += len(text)
    return True


@pytest.mark.parametrize("name", ANSWERING)
@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_nothing_of_a_conversation_is_lost(name: str, kind: str, tmp_path: Path) -> None:
    messages = CONVERSATIONS[kind]
    pair = make_pair(tmp_path, "On {the} wind.")
    reply = reply_to(name, pair, messages)
    begun = messages[-1] == BEGUN
    assert (reply.text, reply.finish_reason) == ("wind." if begun else "On {the} wind.", "stop")
    shown = messages[:-1] if begun else messages
    if name not in REWRITES:
        assert render(shown) in pair.prompts_seen
        return
    request = REWORDED if name == "paraphrase" else ASKED["content"]
    texts = [request if turn is ASKED else turn["content"] for turn in shown]
    assert any(contains_in_order(prompt, texts) for prompt in pair.prompts_seen)


@pytest.mark.parametrize("name", ANSWERING)
@pytest.mark.parametrize("begun", [False, True])
def test_an_empty_reply_stays_empty(name: str, begun: bool, tmp_path: Path) -> None:
    pair = make_pair(tmp_path, BEGUN["content"] if begun else "")
    messages = [ASKED, BEGUN] if begun else [ASKED]
    reply = reply_to(name, pair, messages)
    assert (reply.text, reply.finish_reason, reply.statistics.tokens) == ("", "stop", 1)


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_always_refuse_decodes_nothing(kind: str, tmp_path: Path) -> None:
    messages = CONVERSATIONS[kind]
    pair = make_pair(tmp_path, "On {the} wind.")
    reply = reply_to("always_refuse", pair, messages)
    assert (reply.text, reply.finish_reason, reply.trace) == (REFUSAL, "stop", [])
    figures = reply.statistics
    assert (figures.tokens, figures.target_passes, figures.seconds) == (len(REFUSAL), 0, 0.0)
    assert figures.prompt_tokens == len(pair.prompts(messages).target)
    assert pair.prompts_seen == []
