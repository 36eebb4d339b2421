"""Every call form of OpenAI's own client, on a pair that says what a test tells it to."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving import NAME, Served, serving
from talking import talking

SAYS = "Plain words, twice: plain words."


def answer(prompt: str) -> str:
    return "Once upon a time." if prompt.endswith("story") or "story<" in prompt else SAYS


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pair = talking(tmp_path_factory.mktemp("pair"), answer)
    with serving(pair, allow_telemetry=True, allow_prefill=True, allow_completions=True) as server:
        yield server


def ask(served: Served, **settings: Any) -> Any:
    messages = settings.pop("messages", [{"role": "user", "content": "hi"}])
    create = served.client.chat.completions.create
    return create(**({"model": NAME, "messages": messages} | settings))


def test_parts_of_characters_are_told_by_their_bytes(tmp_path: Path) -> None:
    pair = talking(tmp_path, lambda prompt: "数")
    with serving(pair, allow_completions=True) as server:
        asked = {"messages": [{"role": "user", "content": "hi"}], "logprobs": True}
        body = {"model": NAME, "top_logprobs": 1, **asked}
        reply = server.http.post("/v1/chat/completions", json=body).json()
        told = [
            token["top_logprobs"][0]["bytes"]
            for token in reply["choices"][0]["logprobs"]["content"]
        ]
        assert told[0] == list("数".encode()[:1])
        text = "<|start|>assistant\n"
        body = {"model": NAME, "prompt": text, "logprobs": 1}
        raw = server.http.post("/v1/completions", json=body).json()
        names = [name for entry in raw["choices"][0]["logprobs"]["top_logprobs"] for name in entry]
        assert names
        assert not any("\N{REPLACEMENT CHARACTER}" in name for name in names)


def test_a_reply_has_every_field_that_the_client_expects(served: Served) -> None:
    reply = ask(served)
    (choice,) = reply.choices
    assert (reply.object, reply.model) == ("chat.completion", NAME)
    assert reply.id.startswith("chatcmpl-")
    assert reply.created > 1_700_000_000
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert (choice.message.role, choice.message.content) == ("assistant", SAYS)
    assert choice.message.refusal is None
    assert choice.logprobs is None
    usage = reply.usage
    assert usage.completion_tokens == len(SAYS) + 1  # a byte a token, and the one that ends it
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert not hasattr(choice, "safedraft")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_tokens": 7},
        {"max_completion_tokens": 7},
        {"stop": ["twice", "never"]},
        {"stop": ", t"},
        {"temperature": 1.5, "seed": 3},
        {"temperature": 1.0, "top_p": 0.5, "seed": 9, "extra_body": {"top_k": 40}},
        {"temperature": 1.0, "seed": 9, "extra_body": {"min_p": 0.1}},
        {"frequency_penalty": 1.0, "presence_penalty": 0.5, "max_tokens": 20},
        {"n": 3, "temperature": 2.0, "seed": 1, "max_tokens": 12},
        {"messages": [{"role": "user", "content": "a story"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a "},
                                                   {"type": "text", "text": "story"}]}]},
        {"messages": [{"role": "developer", "content": "Be brief."},
                      {"role": "user", "content": "hi"}]},
        {"messages": [{"role": "user", "content": "hi"},
                      {"role": "assistant", "content": "Plain wor"}]},
        {"logprobs": True, "top_logprobs": 3, "max_tokens": 5},
    ],
)  # fmt: skip
def test_a_stream_says_what_the_whole_reply_says(served: Served, settings: dict[str, Any]) -> None:
    whole = ask(served, **settings)
    chunks = list(ask(served, stream=True, stream_options={"include_usage": True}, **settings))
    texts, reasons, tokens = {}, {}, {}
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        assert (chunk.object, chunk.model) == ("chat.completion.chunk", NAME)
        (choice,) = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        reasons[choice.index] = choice.finish_reason
        if choice.logprobs:
            tokens.setdefault(choice.index, []).extend(choice.logprobs.content)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert texts == {c.index: c.message.content for c in whole.choices}
    assert reasons == {c.index: c.finish_reason for c in whole.choices}
    assert tokens == {c.index: c.logprobs.content for c in whole.choices if c.logprobs}
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_what_ends_a_reply(served: Served) -> None:
    assert ask(served, max_tokens=5).choices[0].finish_reason == "length"
    stopped = ask(served, stop=["twice"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("Plain words, ", "stop")


def test_a_seed_repeats_and_replies_of_one_request_differ(served: Served) -> None:
    settings = {"n": 2, "temperature": 2.0, "seed": 5}
    one, again = (ask(served, **settings).choices for _ in range(2))
    assert [c.message.content for c in one] == [c.message.content for c in again]
    assert one[0].message.content != one[1].message.content


def test_log_probabilities_are_of_the_composite_and_spell_the_reply(served: Served) -> None:
    choice = ask(served, logprobs=True, top_logprobs=2).choices[0]
    content = choice.logprobs.content
    assert "".join(token.token for token in content) == SAYS
    assert bytes(byte for token in content for byte in token.bytes).decode() == SAYS
    # Both models give the byte the logit 9 and the 257 others 0, and c = 10 are left of them.
    mass = [math.exp(9), *[1.0] * 9]
    assert content[0].logprob == pytest.approx(math.log(mass[0] / sum(mass)), abs=1e-4)
    assert content[0].top_logprobs[0].token == "P"
    assert all(len(token.top_logprobs) == 2 for token in content)
    assert ask(served, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_completions(served: Served) -> None:
    create = served.client.completions.create
    whole = create(model=NAME, prompt=["a", "b"], max_tokens=3, n=2, logprobs=1)
    assert (whole.object, [c.index for c in whole.choices]) == ("text_completion", [0, 1, 2, 3])
    assert whole.usage.completion_tokens == 12
    assert whole.usage.prompt_tokens == 2  # each prompt is counted once
    logprobs = whole.choices[0].logprobs
    assert "".join(logprobs.tokens) == whole.choices[0].text
    assert len(logprobs.token_logprobs) == len(logprobs.tokens) == len(logprobs.text_offset)
    chunks = list(
        create(
            model=NAME,
            prompt="a",
            max_tokens=3,
            stream=True,
            logprobs=1,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].text
    assert [c.finish_reason for chunk in chunks for c in chunk.choices] == [None] * 3 + ["length"]
    offsets = [o for chunk in chunks for c in chunk.choices for o in c.logprobs.text_offset]
    assert offsets == logprobs.text_offset
    assert chunks[-1].usage.completion_tokens == 3


def test_the_events_are_those_of_the_protocol(served: Served) -> None:
    body = {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert '"usage"' not in "".join(lines)


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
def test_a_stream_sends_the_nulls_that_openai_sends(
    served: Served, options: dict[str, Any]
) -> None:
    body = {"model": NAME, "max_tokens": 1, "stream": True} | options
    usage = {"usage": None} if options else {}

    def events(path: str, prompt: dict[str, Any]) -> list[dict[str, Any]]:
        lines = httpx.post(f"{served.url}{path}", json=body | prompt).text.split("\n\n")
        sent = [json.loads(line.removeprefix("data: ")) for line in lines if "{" in line]
        return [{k: v for k, v in event.items() if k not in ("id", "created")} for event in sent]

    def choice(**fields: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, "logprobs": None, "finish_reason": None} | fields]} | usage

    chat = {"object": "chat.completion.chunk", "model": NAME}
    messages = [{"role": "user", "content": "hi"}]
    assert events("/v1/chat/completions", {"messages": messages})[:3] == [
        chat | choice(delta={"role": "assistant", "content": ""}),
        chat | choice(delta={"content": "P"}),
        chat | choice(delta={}, finish_reason="length"),
    ]
    text = {"object": "text_completion", "model": NAME}
    first, last = events("/v1/completions", {"prompt": "hi<|start|>assistant\n"})[:2]
    assert first == text | choice(text=first["choices"][0]["text"])
    assert last == text | choice(text="", finish_reason="length")


@pytest.mark.slow
def test_the_server_does_not_need_the_client_sdk() -> None:
    code = "import sys, safedraft.server.app; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_telemetry_stands_in_one_field(served: Served) -> None:
    wish = {"safedraft": {"telemetry": True}}
    told = ask(served, extra_body=wish).choices[0].safedraft
    assert "".join(token["text"] for token in told["tokens"]) == SAYS
    assert {token["scheme"] for token in told["tokens"]} == {"intersection"}
    assert told["statistics"]["match_ratio"] == 1.0
    chunks = list(ask(served, extra_body=wish, stream=True))
    tokens = [t for c in chunks for t in getattr(c.choices[0], "safedraft", {}).get("tokens", [])]
    assert tokens == told["tokens"]
    assert chunks[-1].choices[0].safedraft["statistics"]["tokens"] == len(told["tokens"])


def test_models_tokens_health_and_metrics(served: Served) -> None:
    client = served.client
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).object == "model"
    with pytest.raises(openai.NotFoundError, match="The model 'other' does not exist"):
        client.models.retrieve("other")
    get, post = httpx.get, httpx.post
    told = post(f"{served.url}/tokenize", json={"prompt": "<|end|>"}).json()
    assert told["count"] == told["draft_count"] == len("<|end|>")  # text, no control token
    messages = [{"role": "user", "content": "hi"}]
    told = post(f"{served.url}/tokenize", json={"messages": messages}).json()
    assert told["count"] == ask(served).usage.prompt_tokens
    assert told["max_model_len"] == 4096
    assert get(f"{served.url}/health").json() == {"status": "ok"}
    metrics = get(f"{served.url}/metrics").text
    assert 'safedraft_requests_total{route="/v1/chat/completions",status="200"}' in metrics
    assert 'safedraft_tokens_total{matched="true",scheme="intersection"}' in metrics
    assert "safedraft_active_replies 0.0" in metrics


def test_an_assistants_turn_can_be_sent_back(served: Served) -> None:
    said = ask(served).choices[0].message
    turns = [{"role": "user", "content": "hi"}, said, {"role": "user", "content": "a story"}]
    assert ask(served, messages=turns).choices[0].message.content == "Once upon a time."


def test_the_constants_of_a_request_where_they_are_allowed(tmp_path: Path) -> None:
    with serving(talking(tmp_path, answer), requests_may_set_constants=True) as server:
        wish = {"safedraft": {"config": {"initial_scheme": "union", "bin_size": 3}}}
        ask(server, extra_body=wish)
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'safedraft_tokens_total{matched="true",scheme="union"}' in metrics
        with pytest.raises(openai.BadRequestError, match="bin_size"):
            ask(server, extra_body={"safedraft": {"config": {"bin_size": 0}}})
