"""``tools``: replies that call functions, and conversations in which they did."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from conftest import save_tokenizer
from serving import NAME, Served, serving
from talking import END, talking
from transformers import AutoTokenizer

from safedraft.core.config import StructuredOutputs
from safedraft.core.rule import State
from safedraft.server.tools import CallReader, Function, write_grammar
from safedraft.text.grammar import Grammars

REFUSAL = "I'm sorry, but I can't help with that."
DOUBLE = {
    "type": "function",
    "function": {
        "name": "double",
        "description": "Return twice the number.",
        "parameters": {
            "type": "object",
            "properties": {"number": {"type": "integer"}},
            "required": ["number"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [DOUBLE, CLOCK]
TEMPLATE = (
    "{% if tools %}<|start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    '<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call><|end|>\n{% endif %}'
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


CALL = call("double", '{"number": 21}')
TWO = f"{CALL}\n{call('clock', '{}')}"
SAYS = {
    "double": CALL,
    "first": f"Let me see.\n\n{CALL}",
    "both": f"\n{TWO}\n",
    "wrong": '<tool_call>\n{"name": "double", "arguments": {number}}\n</tool_call> and so on',
    "text": call("double", '{"number": "many"}'),
    "two": TWO,
    "bomb": REFUSAL,
    "marker": call("double", '{"said": "</tool_call>"}'),
}


def answer(prompt: str) -> str:
    role, _, content = prompt.rpartition("<|start|>")[2].removesuffix("<|end|>\n").partition("\n")
    return f"It is {content}." if role == "tool" else SAYS.get(content, "Plain words, a < b.")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pair = talking(tmp_path_factory.mktemp("pair"), answer, TEMPLATE)
    with serving(pair, {"new_tokens": 200}, allow_telemetry=True, allow_prefill=True) as server:
        yield server


def ask(served: Served, text: str, **more: Any) -> httpx.Response:
    turns = [{"role": "user", "content": text}]
    body = json.dumps({"model": NAME, "messages": turns, "tools": TOOLS} | more)
    headers = {"content-type": "application/json"}
    return served.http.post("/v1/chat/completions", content=body, headers=headers)


def choice(served: Served, text: str, **more: Any) -> dict[str, Any]:
    response = ask(served, text, **more)
    assert response.status_code == 200, response.text
    (first,) = response.json()["choices"]
    return dict(first)


def calls_of(message: dict[str, Any]) -> list[tuple[str, Any]]:
    functions = [one["function"] for one in message.get("tool_calls", ())]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("double", None, [("double", {"number": 21})]),
        ("first", "Let me see.", [("double", {"number": 21})]),
        ("both", None, [("double", {"number": 21}), ("clock", {})]),
        ("marker", None, [("double", {"said": "</tool_call>"})]),
        ("wrong", SAYS["wrong"], []),
        ("hi", "Plain words, a < b.", []),
        ("bomb", REFUSAL, []),
    ],
)
@pytest.mark.parametrize(
    "more", [{}, pytest.param({"tool_choice": "auto", "n": 1}, marks=pytest.mark.slow)]
)
def test_the_model_chooses_whether_it_calls(
    served: Served, text: str, content: str | None, calls: list[Any], more: dict[str, Any]
) -> None:
    said = choice(served, text, **more)
    assert said["message"]["content"] == content
    assert calls_of(said["message"]) == calls
    assert ("tool_calls" in said["message"]) == bool(calls)
    assert said["finish_reason"] == ("tool_calls" if calls else "stop")
    assert said["message"]["refusal"] is None


@pytest.mark.parametrize(
    ("text", "more"),
    [
        pytest.param(text, more, marks=pytest.mark.slow if more and text != "both" else [])
        for text in SAYS
        for more in ({}, {"tool_choice": "required"}, {"logprobs": True})
    ],
)
def test_a_stream_says_what_the_whole_reply_says(
    served: Served, text: str, more: dict[str, Any]
) -> None:
    whole = choice(served, text, **more)
    lines = ask(served, text, stream=True, **more).text.splitlines()
    events = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    deltas = [event["delta"] for event in events]
    for field in ("content", "refusal"):
        said = "".join(delta.get(field) or "" for delta in deltas)
        assert said == (whole["message"][field] or "")
    calls = [one for delta in deltas for one in delta.get("tool_calls", ())]
    assert [one.pop("index") for one in calls] == [*range(len(calls))]
    assert calls_of({"tool_calls": calls}) == calls_of(whole["message"])
    assert len({one["id"] for one in calls}) == len(calls)
    assert events[-1]["finish_reason"] == whole["finish_reason"]
    if not more.get("logprobs"):
        assert all(deltas[:-1])  # a text that is held back makes no event


@pytest.mark.parametrize("text", ["hi", "double", "both", "text", "wrong"])
def test_a_reply_that_has_to_call_calls(served: Served, text: str) -> None:
    said = choice(served, text, tool_choice="required")
    called = calls_of(said["message"])
    assert said["finish_reason"] == "tool_calls"
    assert said["message"]["content"] is None
    assert {name for name, _ in called} <= {"double", "clock"}
    assert all(isinstance(made.get("number", 0), int) for _, made in called)


def test_a_named_function_is_the_one_that_is_called(served: Served) -> None:
    named = {"type": "function", "function": {"name": "clock"}}
    for text in ("double", "two", "hi"):
        said = choice(served, text, tool_choice=named)
        assert calls_of(said["message"]) == [("clock", {})]
        assert said["finish_reason"] == "tool_calls"


def test_no_tool_is_called_nor_shown_where_none_may_be(served: Served) -> None:
    said = choice(served, "double", tool_choice="none")
    assert (said["message"]["content"], said["finish_reason"]) == (CALL, "stop")
    usage = [ask(served, "hi", **more).json()["usage"] for more in ({}, {"tool_choice": "none"})]
    assert usage[0]["prompt_tokens"] > usage[1]["prompt_tokens"]


def test_tokens_are_counted_with_the_tools(served: Served) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}
    counted = served.http.post("/tokenize", json=body).json()["count"]
    assert counted == ask(served, "hi").json()["usage"]["prompt_tokens"]


def test_one_call_where_there_may_be_one(served: Served) -> None:
    for chosen in ("auto", "required"):
        said = choice(served, "two", tool_choice=chosen, parallel_tool_calls=False)
        assert calls_of(said["message"]) == [("double", {"number": 21})]
    said = choice(served, "hi", parallel_tool_calls=False)
    assert said["message"]["content"] == "Plain words, a < b."


def test_the_arguments_of_a_strict_function_are_those_of_its_schema(served: Served) -> None:
    strict = {"type": "function", "function": DOUBLE["function"] | {"strict": True}}
    (loose,) = calls_of(choice(served, "text")["message"])
    assert loose == ("double", {"number": "many"})
    calls = calls_of(choice(served, "text", tools=[strict])["message"])
    assert calls
    assert all(type(made["number"]) is int for _, made in calls)
    assert choice(served, "hi", tools=[strict])["message"]["content"] == "Plain words, a < b."


@pytest.mark.parametrize(
    "chosen", ["required", {"type": "function", "function": {"name": "clock"}}]
)
def test_a_refusal_comes_out_in_place_of_a_call(served: Served, chosen: Any) -> None:
    wish = {"safedraft": {"telemetry": True}}
    said = choice(served, "bomb", tool_choice=chosen, **wish)
    assert (said["message"]["content"], said["message"]["refusal"]) == (None, REFUSAL)
    assert said["finish_reason"] == "stop"
    assert said["safedraft"]["verdict"] == "refused"
    assert {token["scheme"] for token in said["safedraft"]["tokens"]} == {"intersection"}


def test_ssd_decides_each_token_of_a_call(served: Served) -> None:
    said = choice(served, "double", tool_choice="required", safedraft={"telemetry": True})
    tokens = said["safedraft"]["tokens"]
    assert "".join(token["text"] for token in tokens) == CALL
    assert all(token["scheme"] and token["draft_probability"] for token in tokens)


def test_a_reply_is_json_or_calls_where_both_are_asked_for(served: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": {"enum": ["yes"]}}}
    assert calls_of(choice(served, "double", response_format=form)["message"]) == [
        ("double", {"number": 21})
    ]
    assert choice(served, "hi", response_format=form)["message"]["content"] == '"yes"'
    assert choice(served, "bomb", response_format=form)["message"]["refusal"] == REFUSAL


def test_openais_client_calls_and_gets_an_answer(served: Served) -> None:
    create = served.client.chat.completions.create
    turns: list[Any] = [{"role": "user", "content": "first"}]
    tools: Any = TOOLS
    message = create(model=NAME, messages=turns, tools=tools).choices[0].message
    (made,) = message.tool_calls or ()
    assert made.type == "function"
    turns += [message, {"role": "tool", "tool_call_id": made.id, "content": "42"}]
    reply = create(model=NAME, messages=turns, tools=tools).choices[0]
    assert (reply.message.content, reply.finish_reason) == ("It is 42.", "stop")
    prompt = served.service.pair.prompts_seen[-1]  # type: ignore[attr-defined]
    assert f"<|start|>assistant\nLet me see.{CALL}<|end|>\n<|start|>tool\n42<|end|>" in prompt


def test_what_a_client_spells_is_no_control_token(served: Served) -> None:
    text = "\ue000<|end|>"  # the character that usually separates what is spelled
    spelled = {"type": "function", "function": {"name": "f", "description": text}}
    prompts = [
        served.service.pair.prompts("hi", tools=[one]).target
        for one in (spelled, CLOCK | {"function": {"name": "f", "description": "a"}})
    ]
    end = served.service.pair.target.tokenizer.eos_token_id  # type: ignore[union-attr]
    assert prompts[0].count(end) == prompts[1].count(end)
    assert len(prompts[0]) == len(prompts[1]) + len(text.encode()) - 1


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def function(**changes: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f"} | changes}]}


CALLED = {"id": "a", "type": "function", "function": {"name": "clock", "arguments": "{}"}}


def turns(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"}, *messages]}


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        (function(name="a b"), "tools[0].function.name", ""),
        (function(parameters={"type": "string"}), "tools[0].function.parameters", "type object"),
        (function(other=1), "tools[0].function.other", "does not know"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", ""),
        ({"tools": [CLOCK, CLOCK]}, "tools", "two functions have the name clock"),
        ({"tools": "clock"}, "tools", "it must be a list"),
        ({"tools": [CLOCK] * 129}, "tools", "128"),
        ({"tool_choice": "any"}, "tool_choice", "'none', 'auto' or 'required'"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function", "missing"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "'x'"),
        ({"tool_choice": "required", "tools": []}, "tool_choice", "no tools to call"),
        ({"tool_choice": "required", "tools": None}, "tool_choice", "no tools to call"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "true or false"),
        ({"functions": [{}]}, "functions", "deprecated"),
        ({"function_call": {"name": "f"}}, "function_call", "deprecated"),
        (function(parameters={"properties": {"a": {"type": "odd"}}}) | {"tool_choice": "required"},
         "tools", "odd"),
        (function(parameters={"enum": [*range(9000)]}) | {"tool_choice": "required"},
         "tools", "32768 bytes"),
        (function(parameters={"properties": nested(480)}), "tools[0].function.parameters", "64"),
        (turns({"role": "assistant", "tool_calls": [CALLED | {"function": {
            "name": "clock", "arguments": json.dumps(nested(480))}}]}),
         "messages[1].tool_calls[0].function.arguments", "64 levels"),
        (turns({"role": "tool", "content": "x"}), "messages[1]", "tool_call_id"),
        (turns({"role": "tool", "content": "x", "tool_call_id": "a"}), "messages", "no call"),
        (turns({"role": "user", "content": "x", "tool_calls": [CALLED]}),
         "messages[1]", "assistant"),
        (turns({"role": "assistant", "tool_calls": [CALLED]}), "messages", "must follow"),
        (turns({"role": "assistant", "tool_calls": [CALLED | {"function": {
            "name": "clock", "arguments": "["}}]}),
         "messages[1].tool_calls[0].function.arguments", "JSON object"),
        (turns({"role": "assistant", "content": "Let "}) | {"tool_choice": "required"},
         "messages", "has begun already"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_tools(
    served: Served, changes: dict[str, Any], param: str, words: str
) -> None:
    response = ask(served, "hi", **changes)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "has no tools"),
        (TEMPLATE.replace('{"name": <name>, "arguments": <arguments>}', "<function=name>"),
         "another form"),
    ],
)  # fmt: skip
def test_a_template_needs_tools(tmp_path: Path, template: str | None, words: str) -> None:
    pair = talking(tmp_path, answer, *([template] if template else []))
    with serving(pair) as server:
        response = ask(server, "hi")
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "tools")
        assert words in error["message"]
        assert str(tmp_path) not in error["message"]
        assert choice(server, "hi", tools=[])["finish_reason"] == "stop"


@pytest.mark.parametrize("otherwise", [None, "text", {"enum": ["yes"]}])
def test_where_the_markers_are_tokens_the_grammar_names_them(
    tmp_path: Path, otherwise: Any
) -> None:
    size = save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])  # as Qwen has them: no control tokens
    functions = [Function(name="double", parameters=DOUBLE["function"]["parameters"])]
    grammar = write_grammar(functions, several=True, otherwise=otherwise, marked=True)
    grammars = Grammars(tokenizer, frozenset({END}), size + 2)
    form = StructuredOutputs(grammar=grammar, refusal=False)
    constraint = grammars.compile(form)(State())
    tokens = [*tokenizer.encode(CALL, add_special_tokens=False), END]
    assert (tokens[0], tokens[-2]) == (size, size + 1)
    for token in tokens:
        assert constraint.apply([], torch.zeros(size + 2))[token] == 0
        constraint.decide(token)


@pytest.mark.parametrize("text", [*SAYS.values(), "a <tool", "<tool_call>", "<tool_call>{} "])
def test_what_has_settled_stays(text: str) -> None:
    reader = CallReader(["double", "clock"])
    content, calls = reader.read(text, ended=True)
    for end in range(len(text)):
        begun, made = reader.read(text[:end], ended=False)
        assert content.startswith(begun)
        assert calls[: len(made)] == made


def test_what_is_no_unicode_is_refused(served: Served) -> None:
    response = ask(served, "hi", **function(description="\ud800"))
    assert response.status_code == 400, response.text
    assert "the tools or calls are not valid Unicode" in response.json()["error"]["message"]


def test_long_open_calls_are_read_fast() -> None:
    text = '<tool_call>\n{"name": "double", "arguments": {"said": "' + "</tool_call>" * 2000
    started = time.perf_counter()
    assert CallReader(["double"]).read(text, ended=False) == ("", [])
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize("parameters", [{"properties": {}}, {"anyOf": [{"type": "string"}, {}]}])
def test_arguments_are_an_object_whatever_the_schema_leaves_open(parameters: Any) -> None:
    function = Function(name="double", parameters=parameters)
    grammar = write_grammar([function], several=False, otherwise=None, marked=False)
    assert '"type": "object"' in grammar


def test_a_schema_is_read_as_it_is_written() -> None:
    function = Function(name="double", parameters={"const": "как"})
    assert "как" in write_grammar([function], several=False, otherwise=None, marked=False)


def test_an_earlier_call_may_have_no_arguments(served: Served) -> None:
    called = CALLED | {"function": {"name": "clock", "arguments": ""}}
    assistant = {"role": "assistant", "tool_calls": [called]}
    result = {"role": "tool", "content": "noon", "tool_call_id": CALLED["id"]}
    messages = [{"role": "user", "content": "hi"}, assistant, result]
    assert choice(served, "hi", messages=messages)["message"]["content"] == "It is noon."


@pytest.mark.parametrize(
    "inside",
    [
        '{"name": "double", "arguments": {"number": 1e999}}',
        r'{"name": "double", "arguments": {"said": "\ud83d"}}',
        '{"name": "other", "arguments": {}}', '{"name": "double"}', '["double"]', "{" * 5000,
        '{"name": "double", "arguments": {"number": NaN}}', "[" * 100_000,
        '{"name": "double", "arguments": "{}"}', '{"name": "double", "arguments": {}} {}',
    ],
)  # fmt: skip
def test_what_is_no_call_stays_text(inside: str) -> None:
    text = f"<tool_call>\n{inside}\n</tool_call>"
    assert CallReader(["double"]).read(text, ended=True) == (text, [])


def test_a_call_in_the_reasoning_is_none() -> None:
    reader = CallReader(["double"], after="</think>")
    thought = f"I could say {CALL}."
    assert reader.read(thought, ended=True) == (thought, [])
    content, calls = reader.read(f"{thought}</think>\n\n{CALL}", ended=True)
    assert (content, len(calls)) == (f"{thought}</think>", 1)


@pytest.mark.parametrize("begun", ["", "<think>"])
def test_a_reply_without_reasoning_may_call(begun: str) -> None:
    reader = CallReader(["double"], after="</think>", begun=begun)
    assert len(reader.read(CALL, ended=True)[1]) == (1 if begun else 0)
    thought = f"<think>{CALL}"
    assert reader.read(thought, ended=True) == (thought, [])
