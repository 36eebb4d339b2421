"""Values at the ends of what JSON can write: each is answered, or refused by name with a 4xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from serving import NAME, Served, serving
from talking import talking
from test_refusals import error_of

from safedraft.server.requests import ChatRequest, CompletionRequest, TokenizeRequest

HI = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
HOLE = "a value that a test replaces"


def nested(opening: str, closing: str, depth: int) -> str:
    return opening * depth + "1" + closing * depth


NUMBERS = {
    "huge": "1e308",
    "tiny": "1e-320",
    "infinite": "1e999",
    "negative infinite": "-1e999",
    "not a number": "NaN",
    "65 bits": str(2**64),
    "negative 65 bits": str(-(2**64)),
    "400 digits": "9" * 400,
    "5000 digits": "9" * 5000,
    "a fraction below 0": "-1e308",
}
OTHERS = {
    "a surrogate": '"\\ud800"',
    "a surrogate as a name": '{"\\ud800": 1}',
    "a NUL": '"\\u0000"',
    "a long string": json.dumps("a" * 15_000),
    "a long list": json.dumps([1] * 5_000),
    "a long list of strings": json.dumps(["a"] * 3_000),
    "a long object": json.dumps(dict.fromkeys(map(str, range(1_500)), 1)),
    "lists": nested("[", "]", 100),
    "more lists": nested("[", "]", 400),
    "lists to the limit": nested("[", "]", 900),
    "lists beyond the limit": nested("[", "]", 9_000),
    "objects": nested('{"a":', "}", 100),
    "more objects": nested('{"a":', "}", 400),
    "objects to the limit": nested('{"a":', "}", 900),
    "objects beyond the limit": nested('{"a":', "}", 3_000),
}
VALUES = NUMBERS | OTHERS

FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"const": HOLE}}}}
STRICT = {"type": "function", "function": FUNCTION | {"strict": True}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": HOLE}}


def called(**changes: Any) -> list[dict[str, Any]]:
    call = CALL | changes
    answer = {"role": "tool", "content": "1", "tool_call_id": call["id"]}
    return [*HI, {"role": "assistant", "tool_calls": [call]}, answer]


INSIDE: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": HOLE}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": HOLE}]}]},
    {"messages": [{"role": "user", "content": "hi", "name": HOLE}]},
    {"messages": [{"role": HOLE, "content": "hi"}]},
    {"messages": [*HI, {"role": "assistant", "content": "x", "reasoning": HOLE}, *HI]},
    {"messages": [*HI, {"role": "assistant", "refusal": HOLE}, *HI]},
    {"messages": called(id=HOLE)},
    {"messages": called(function={"name": HOLE, "arguments": "{}"})},
    {"messages": called(function={"name": "f", "arguments": HOLE})},
    {"response_format": {"type": HOLE}},
    {"response_format": SCHEMA},
    {"response_format": SCHEMA | {"json_schema": {"name": HOLE, "schema": {}}}},
    {"response_format": SCHEMA | {"json_schema": {"name": "n", "schema": {"const": HOLE}}}},
    {"response_format": SCHEMA | {"json_schema": {"name": "n", "schema": {"maximum": HOLE}}}},
    {"response_format": SCHEMA | {"json_schema": {"name": "n", "schema": {"minLength": HOLE}}}},
    {"response_format": SCHEMA | {"json_schema": {"name": "n", "schema": {"pattern": HOLE}}}},
    {"tools": [STRICT]},
    {"tools": [{"type": "function", "function": {"name": HOLE}}]},
    {"tools": [{"type": "function", "function": FUNCTION | {"parameters": HOLE}}]},
    {"tools": [{"type": "function", "function": {"name": "f", "description": HOLE}}]},
    {
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": {"type": "function", "function": {"name": HOLE}},
    },
    {"chat_template_kwargs": {"enable_thinking": HOLE}},
    {"chat_template_kwargs": {HOLE: 1}},
    {"logit_bias": {"1": HOLE}},
    {"logit_bias": {HOLE: 1}},
    {"stop": [HOLE]},
    {"stop_token_ids": [HOLE]},
    {"stream": True, "stream_options": {"include_usage": HOLE}},
    {"metadata": {"a": HOLE}},
    {"safedraft": {"telemetry": HOLE}},
    {"safedraft": {"rule": HOLE}},
    {"safedraft": {"config": {HOLE: 1}}},
    *({"safedraft": {"config": {name: HOLE}}} for name in ("alpha_union", "bin_size", "nothing")),
]

ROUTES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    CHAT: (
        {"model": NAME, "messages": HI, "max_tokens": 2},
        [{name: HOLE} for name in ChatRequest.model_fields] + INSIDE,
    ),
    "/v1/completions": (
        {"model": NAME, "prompt": "hi", "max_tokens": 2},
        [{name: HOLE} for name in CompletionRequest.model_fields] + [{"prompt": [HOLE]}],
    ),
    "/tokenize": (
        {"messages": HI},
        [{name: HOLE} for name in TokenizeRequest.model_fields]
        + [changes for changes in INSIDE if {"messages", "tools"} & set(changes)]
        + [{"messages": None, "prompt": HOLE}],
    ),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that allows everything, so that every parameter is read."""
    pair = talking(tmp_path_factory.mktemp("pair"), lambda prompt: "yes")
    allowed = ("allow_prefill", "allow_completions", "allow_telemetry")
    settings = dict.fromkeys((*allowed, "requests_may_set_constants"), True)
    limits = {"new_tokens": 3, "body_seconds": 60}
    with serving(pair, limits, **settings) as server:
        yield server


def send(served: Served, path: str, body: str) -> str | None:
    """What is wrong with the answer to a body; None if nothing is."""
    response = served.http.post(
        path, content=body.encode(), headers={"content-type": "application/json"}, timeout=60
    )
    failed = "server_error" in response.text  # also as an event of a stream
    if not failed and (response.is_success or error_of(response)):
        return None
    return f"{response.status_code} for {path} {body[:300]}: {response.text[:200]}"


FAST = ("a surrogate",)
ROWS = [(path, name) for path in ROUTES for name in VALUES]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        pytest.param(*row, marks=[] if row in [(CHAT, name) for name in FAST] else pytest.mark.slow)
        for row in ROWS
    ],
)
def test_an_extreme_value_of_any_parameter_is_answered_or_refused(
    served: Served, path: str, name: str
) -> None:
    base, all_changes = ROUTES[path]
    bodies = [
        json.dumps(base | changes).replace(f'"{HOLE}"', VALUES[name], 1) for changes in all_changes
    ]
    problems = [send(served, path, body) for body in bodies]
    assert [problem for problem in problems if problem] == []
    assert served.http.get("/health").is_success


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (CHAT, '{"messages": [], "temperature": 0, "temperature": 1}', "temperature"),
        (CHAT, '{"safedraft": {"config": {"alpha_union": 1, "alpha_union": 0}}}', "alpha_union"),
        ("/v1/completions", '{"prompt": "a", "prompt": "b"}', "prompt"),
        ("/tokenize", '{"prompt": "a", "prompt": "b"}', "prompt"),
    ],
)
def test_no_name_stands_twice_in_an_object(served: Served, path: str, body: str, name: str) -> None:
    headers = {"content-type": "application/json"}
    response = served.http.post(path, content=body.encode(), headers=headers)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (400, "invalid_json")
    assert error["message"] == f"The body is not valid JSON: an object has the name {name!r} twice."
