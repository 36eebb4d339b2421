"""The requests of Open WebUI 0.12.4, as they came to this server from its default settings.

Recorded are a first message, the title, tags and further questions that it asks for, a tool's call
with its result, and what its page adds on a user's wish. The names and the forms are its own; the
texts are shortened, and four of its 36 tools stand for all: they have every keyword of the others'
schemas.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import NAME, Served, serving
from talking import talking
from test_tools import TEMPLATE, call

SAYS = "Plain words, twice: plain words."
WRITTEN = {
    '"title"': '{"title": "A greeting"}',
    '"tags"': '{"tags": ["General"]}',
    '"follow_ups"': '{"follow_ups": ["What else?"]}',
}
CLOCK = "get_current_timestamp"


def answer(prompt: str) -> str:
    last = prompt.rpartition("<|start|>")[2]
    if last.startswith("user\nWhat is the time?"):
        return call(CLOCK, "{}")
    return next((text for form, text in WRITTEN.items() if form in last), SAYS)


def tool(name: str, properties: dict[str, Any], **rest: Any) -> dict[str, Any]:
    parameters = {"properties": properties, **rest, "type": "object"}
    function = {"name": name, "description": "What it is for.", "parameters": parameters}
    return {"type": "function", "function": function}


def strings(**rest: Any) -> dict[str, Any]:
    return {"description": "What it holds.", "type": "string", **rest}


TOOLS = [
    tool(CLOCK, {}),
    tool(
        "ask_user",
        {
            "questions": {
                "description": "Each with its options.",
                "items": {"additionalProperties": True, "type": "object"},
                "type": "array",
            },
            "allow_other": {"default": True, "description": "Free answers.", "type": "boolean"},
            "timeout_ms": {"default": 120000, "description": "How long.", "type": "integer"},
        },
        required=["questions"],
    ),
    tool(
        "create_tasks",
        {
            "tasks": {
                "description": "The tasks.",
                "items": {
                    "properties": {
                        "content": strings(),
                        "status": strings(default="pending", enum=["pending", "completed"]),
                    },
                    "required": ["content"],
                    "type": "object",
                },
                "type": "array",
            }
        },
        required=["tasks"],
    ),
    tool(
        "create_skill",
        {
            "name": strings(),
            "resources": {
                "description": "Files.",
                "items": {
                    "additionalProperties": False,
                    "properties": {"path": strings(), "encoding": {"const": "base64"}},
                    "required": ["path"],
                    "type": "object",
                },
                "type": "array",
            },
        },
        required=["name"],
    ),
]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def message(*turns: dict[str, Any], **rest: Any) -> dict[str, Any]:
    """The body of a message of the chat, without tools: ``function_calling`` is ``legacy``."""
    return {"stream": True, "model": NAME, **rest, "messages": list(turns)}


def task(text: str, **rest: Any) -> dict[str, Any]:
    """The body of a request for a title, tags or further questions."""
    asked = f"### Task:\n{text}\n### Chat History:\n<chat_history>\nUSER: hi\n</chat_history>"
    return {"model": NAME, "messages": [user(asked)], "stream": False, **rest}


TASKS = {
    '{"title": "A greeting"}': task('JSON format: { "title": "your title" }', max_tokens=1000),
    '{"tags": ["General"]}': task('JSON format: { "tags": ["tag1", "tag2"] }'),
    '{"follow_ups": ["What else?"]}': task('JSON format: { "follow_ups": ["Suggested"] }'),
}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
REFUSED = {
    "a picture": (message(user([{"type": "text", "text": "hi"}, PICTURE])),
                  "messages[0].content", "invalid_value"),
    "Continue Response": (message(user("hi"), {"role": "assistant", "content": SAYS}),
                          "messages", "prefill_disabled"),
    "reasoning_effort": (message(user("hi"), reasoning_effort="low"),
                         "reasoning_effort", "unsupported_parameter"),
    "logit_bias": (message(user("hi"), logit_bias={"5": 10}), "logit_bias", "shifts_disabled"),
    **{name: (message(user("hi"), **{name: value}), name, "unknown_parameter")
       for name, value in {"num_ctx": 4096, "think": True, "repeat_penalty": 1.1,
                           "mirostat": 1}.items()},
}  # fmt: skip
"""From a wish of the user, the body, and the error's ``param`` and ``code``."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(talking(tmp_path_factory.mktemp("pair"), answer, TEMPLATE)) as server:
        yield server


def post(served: Served, body: dict[str, Any]) -> httpx.Response:
    headers = {"Authorization": "Bearer none", "Accept-Encoding": "gzip, deflate, br"}
    return served.http.post("/v1/chat/completions", json=body, headers=headers)


def stream(served: Served, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a reply that ends well."""
    response = post(served, body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last = response.text.strip().split("\n\n")
    assert last == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def read(events: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]], list[str]]:
    """The text of a stream, its calls, and why it ended."""
    choices = [event["choices"][0] for event in events if event["choices"]]
    deltas = [choice["delta"] for choice in choices]
    text = "".join(delta.get("content") or "" for delta in deltas)
    calls = [made for delta in deltas for made in delta.get("tool_calls", [])]
    return text, calls, [c["finish_reason"] for c in choices if c["finish_reason"]]


@pytest.mark.parametrize(
    "body",
    [
        message(user("hi"), tools=TOOLS),
        message(user("hi")),
        message({"role": "system", "content": "Be brief."}, user("hi")),
        message(user("hi"), {"role": "assistant", "content": SAYS}, user("Thanks")),
        message(user("hi"), temperature=0.7, top_p=0.9, top_k=20, min_p=0.05, seed=3, stop=["x"]),
    ],
    ids=["tools", "legacy", "system prompt", "conversation", "settings"],
)
def test_a_message_is_answered(served: Served, body: dict[str, Any]) -> None:
    assert read(stream(served, body)) == (SAYS, [], ["stop"])


@pytest.mark.parametrize("written", TASKS)
def test_a_task_is_answered(served: Served, written: str) -> None:
    reply = post(served, TASKS[written]).json()
    (choice,) = reply["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (written, "stop")


def test_a_tool_is_called_and_its_result_answered(served: Served) -> None:
    asked = user("What is the time?")
    text, (made,), reasons = read(stream(served, message(asked, tools=TOOLS)))
    assert (text, reasons) == ("", ["tool_calls"])
    assert (made["index"], made["function"]) == (0, {"name": CLOCK, "arguments": "{}"})
    sent_back = {"id": made["id"], "type": "function", "function": made["function"]}
    called = {"role": "assistant", "content": "", "tool_calls": [sent_back]}
    result = {"role": "tool", "tool_call_id": made["id"], "content": '{"current_timestamp":0}'}
    assert read(stream(served, message(asked, called, result, tools=TOOLS)))[0] == SAYS


def test_the_usage_is_sent_where_the_model_is_set_to_report_it(served: Served) -> None:
    events = stream(served, message(user("hi"), stream_options={"include_usage": True}))
    assert events[-1]["usage"]["completion_tokens"] == len(SAYS) + 1
    assert "usage" not in stream(served, message(user("hi")))[-1]


@pytest.mark.parametrize("wish", REFUSED)
def test_a_refusal_is_json_that_the_page_shows(served: Served, wish: str) -> None:
    body, parameter, code = REFUSED[wish]
    response = post(served, body)
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, parameter, code)


def test_its_tools_are_refused_where_the_template_has_none(tmp_path: Path) -> None:
    with serving(talking(tmp_path, answer)) as server:
        assert post(server, message(user("hi"), tools=TOOLS)).json()["error"]["param"] == "tools"
        assert read(stream(server, message(user("hi"))))[0] == SAYS
