"""``response_format``: replies of the form that is asked for, or refusals, each in its field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from serving import NAME, Served, serving
from talking import talking

REFUSAL = "I'm sorry, but I can't help with that."
ANSWER = '{"name": "Ann", "age": 41}'


class Person(BaseModel):
    name: str
    age: int


def answer(prompt: str) -> str:
    return REFUSAL if "bomb" in prompt else ANSWER if "Ann" in prompt else "Plain words."


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pair = talking(tmp_path_factory.mktemp("pair"), answer)
    with serving(pair, {"new_tokens": 100}, allow_prefill=True) as server:
        yield server


def ask(served: Served, text: str, form: Any, **more: Any) -> httpx.Response:
    turns = [{"role": "user", "content": text}]
    body = {"model": NAME, "messages": turns, "response_format": form} | more
    return served.http.post("/v1/chat/completions", json=body)


def named(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": schema} | more}


PERSON = named(Person.model_json_schema() | {"additionalProperties": False}, strict=True)


def test_openais_client_parses_what_comes(served: Served) -> None:
    parse = served.client.chat.completions.parse
    turns: Any = [{"role": "user", "content": "Who is Ann?"}]
    message = parse(model=NAME, messages=turns, response_format=Person).choices[0].message
    assert (message.parsed, message.refusal) == (Person(name="Ann", age=41), None)
    turns[0]["content"] = "How do I build a bomb?"
    message = parse(model=NAME, messages=turns, response_format=Person).choices[0].message
    assert (message.parsed, message.content, message.refusal) == (None, None, REFUSAL)


@pytest.mark.parametrize(
    ("text", "field", "whole"), [("Ann", "content", ANSWER), ("a bomb", "refusal", REFUSAL)]
)
def test_a_stream_and_its_log_probabilities_have_the_field_of_the_reply(
    served: Served, text: str, field: str, whole: str
) -> None:
    response = ask(served, text, PERSON, stream=True, logprobs=True)
    events = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    choices = [json.loads(event)["choices"][0] for event in events]
    assert "".join(choice["delta"].get(field) or "" for choice in choices) == whole
    other = {"content": "refusal", "refusal": "content"}[field]
    assert not any(choice["delta"].get(other) for choice in choices)
    reports = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    assert "".join(one["token"] for report in reports for one in report[field] or ()) == whole
    assert all(report[other] is None for report in reports)


def test_a_reply_that_would_be_prose_is_json_all_the_same(served: Served) -> None:
    form = named({"enum": ["yes", "no"]})
    message = ask(served, "Is it so?", form).json()["choices"][0]["message"]
    assert json.loads(message["content"]) in ("yes", "no")
    assert message["refusal"] is None
    plain = ask(served, "Is it so?", {"type": "text"}).json()["choices"][0]["message"]
    assert plain["content"] == "Plain words."


def test_a_null_in_a_schema_means_something(served: Served) -> None:
    form = named({"enum": [None]}, description=None, strict=None)
    message = ask(served, "Is it so?", form).json()["choices"][0]["message"]
    assert message["content"] == "null"


@pytest.mark.parametrize(
    ("form", "code", "words"),
    [
        ({"type": "grammar"}, "unsupported_parameter", "json_schema"),
        ({"type": "json_schema"}, "unsupported_parameter", "json_schema"),
        (named({"type": "nonsense"}), "invalid_value", "nonsense"),
    ],
)
def test_a_form_that_cannot_be_had_is_refused(
    served: Served, form: dict[str, Any], code: str, words: str
) -> None:
    response = ask(served, "Is it so?", form)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, code)
    assert error["param"] == "response_format"
    assert words in error["message"]


def test_a_begun_reply_has_no_form(served: Served) -> None:
    turns = [{"role": "user", "content": "Ann"}, {"role": "assistant", "content": "{"}]
    response = ask(served, "", {"type": "json_object"}, messages=turns)
    assert response.status_code == 400
    assert "has begun already" in response.json()["error"]["message"]


def test_several_replies_have_the_form(served: Served) -> None:
    choices = ask(served, "Is it so?", named({"enum": ["a", "b"]}), n=3).json()["choices"]
    assert [json.loads(choice["message"]["content"]) for choice in choices] == ["a", "a", "a"]


def test_a_form_that_grows_too_complex_ends_its_own_reply_alone(served: Served) -> None:
    part = {"type": "object", "properties": {"name": {"$ref": "#"}, "age": {}}}
    bad = named({"anyOf": [part] * 300})
    with ThreadPoolExecutor() as threads:
        refused = threads.submit(ask, served, "Ann", bad)
        others = [threads.submit(ask, served, "Ann", PERSON) for _ in range(3)]
    response = refused.result()
    assert (response.status_code, response.json()["error"]["param"]) == (400, "response_format")
    assert "cannot follow its form further" in response.json()["error"]["message"]
    for other in others:
        assert other.result().json()["choices"][0]["message"]["content"] == ANSWER


def test_a_schema_has_a_largest_size(served: Served) -> None:
    response = ask(served, "Ann", named({"enum": [*range(9000)]}))
    assert response.status_code == 400
    assert response.json()["error"]["message"] == (
        "Invalid value of response_format: a schema may have at most 32768 bytes."
    )
