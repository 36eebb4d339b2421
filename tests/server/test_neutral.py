"""Values that change nothing are accepted; all others are refused, in the server's own words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from helpers.templates import TRAITS
from openai.types.chat import completion_create_params as chat_params
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import BaseModel, ValidationError
from serving import NAME, Served, serving
from talking import talking

from safedraft.core import errors
from safedraft.server.errors import convert_validation_error, describe
from safedraft.server.messages import ChatMessage
from safedraft.server.metrics import find_answer
from safedraft.server.neutral import INERT, UNSUPPORTED, drop_nulls
from safedraft.server.requests import (
    ChatRequest,
    CompletionRequest,
    SafeDraftOptions,
    StreamOptions,
    TokenizeRequest,
)

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """It says how many messages it got, and whose beginning it continues."""
    pair = talking(tmp_path_factory.mktemp("pair"), lambda prompt: f"[{prompt}]")
    allowed = ("allow_prefill", "allow_completions", "requests_may_set_constants")
    with serving(pair, {"new_tokens": 400}, **dict.fromkeys(allowed, True)) as server:
        yield server


def ask(served: Served, **body: Any) -> tuple[int, Any]:
    response = served.http.post("/v1/chat/completions", json={"model": NAME, "messages": HI} | body)
    answer = response.json()
    if response.status_code == 200:
        return 200, answer["choices"]
    return response.status_code, answer["error"]


NEUTRAL: list[dict[str, Any]] = [
    {"top_k": -1},
    {"top_k": 0},
    {"logprobs": False, "top_logprobs": 0},
    {"top_logprobs": 0},
    {"stream_options": {}},
    {"stream_options": {"include_usage": False}},
    {"stream_options": {"include_usage": None, "include_obfuscation": False}},
    {"function_call": "none"},
    {"function_call": "auto"},
    {"reasoning_effort": "none"},
    {"verbosity": "medium"},
    {"audio": None, "moderation": None, "web_search_options": None},
    {"prediction": {"type": "content", "content": "hi"}},
    {"prompt_cache_options": {"mode": "implicit"}},
    {"spaces_between_special_tokens": True},
    {"spaces_between_special_tokens": False},
    {"detokenize": True},
    {"add_generation_prompt": True},
    {"continue_final_message": False},
    {"include_reasoning": True},
    {"bad_words": []},
    {"logits_processors": []},
    {"documents": []},
    {"vllm_xargs": {}},
    {"priority": 0},
    {"request_id": "mine"},
    {"cache_salt": "mine"},
    {"return_token_ids": False, "return_tokens_as_token_ids": False},
    {"stop": [None]},
    {"stop_token_ids": [None]},
    {"logit_bias": {"5": None}},
    {"tools": [], "tool_choice": "auto", "parallel_tool_calls": False},
    {"safedraft": {"config": {"alpha_union": None}, "telemetry": None, "rule": None}},
    {"chat_template_kwargs": {"enable_thinking": None}},
    {"response_format": {"type": "text", "json_schema": None}},
    {"messages": [{**HI[0], "name": None, "refusal": None, "audio": None}]},
    *(
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi", **more}]}]}
        for more in (
            {},
            {"cache_control": None},
            {"cache_control": {"type": "ephemeral"}},
            {"prompt_cache_breakpoint": {"mode": "explicit"}},
            {"annotations": [], "index": 0},
            {"image_url": None},
        )
    ),
]


@pytest.mark.parametrize("neutral", NEUTRAL, ids=str)
def test_a_value_without_effect_gives_the_same_reply(
    served: Served, neutral: dict[str, Any]
) -> None:
    status, answer = ask(served, **neutral)
    assert status == 200, answer
    assert answer == ask(served)[1]


SAID = {"role": "assistant", "content": "no"}


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ({"content": None, "refusal": "no"}, SAID),
        ({"refusal": "no"}, SAID),
        ({"content": "", "refusal": "no"}, SAID),
        ({"content": "no", "refusal": ""}, SAID),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, SAID),
        ({"content": [{"type": "text", "text": "n"}, {"type": "refusal", "refusal": "o"}]}, SAID),
        ({"content": [None, {"type": "text", "text": "no", "id": "1"}]}, SAID),
        ({"content": None, "tool_calls": []}, {**SAID, "content": ""}),
        ({"content": None, "refusal": None, "tool_calls": []}, {**SAID, "content": ""}),
        ({"content": None, "refusal": ""}, {**SAID, "content": ""}),
    ],
    ids=str,
)
def test_what_the_assistant_said_is_its_content(
    served: Served, sent: dict[str, Any], meant: dict[str, Any]
) -> None:
    replies = [
        ask(served, messages=[*HI, turn, *HI]) for turn in ({"role": "assistant", **sent}, meant)
    ]
    assert replies[0] == replies[1]
    assert replies[0][0] == 200


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"verbosity": "low"}, "verbosity"),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"audio": {}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"detokenize": False}, "detokenize"),
        ({"include_reasoning": False}, "include_reasoning"),
        ({"bad_words": ["x"]}, "bad_words"),
        ({"logits_processors": ["x"]}, "logits_processors"),
        ({"vllm_xargs": {"ssd_alpha_union": 0}}, "vllm_xargs"),
        ({"priority": 1}, "priority"),
        ({"return_token_ids": True}, "return_token_ids"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 2**63}, "top_k"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"messages": [*HI, SAID], "continue_final_message": False}, "continue_final_message"),
        ({"messages": [*HI, SAID], "add_generation_prompt": True}, "add_generation_prompt"),
        ({"messages": [*HI, {**SAID, "content": None}, *HI]}, "messages[1].content"),
        ({"messages": [*HI, {**SAID, "refusal": "never"}, *HI]}, "messages[1].refusal"),
        ({"messages": [{**HI[0], "content": None, "refusal": "no"}]}, "messages[0].content"),
        ({"messages": [None, *HI]}, "messages[0]"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "hi", "image_url": "x"}]}
                ]
            },
            "messages[0].content",
        ),
    ],
    ids=str,
)
def test_a_value_with_an_effect_is_refused_by_name(
    served: Served, changes: dict[str, Any], param: str
) -> None:
    status, error = ask(served, **changes)
    assert (status, error["param"]) == (400, param)


def test_levels_of_reasoning_and_length_are_refused_with_why(served: Served) -> None:
    assert "chat template" in ask(served, reasoning_effort="high")[1]["message"]
    assert "in a message" in ask(served, verbosity="high")[1]["message"]


def test_a_pair_that_thinks_has_some_effort_of_reasoning(tmp_path: Path) -> None:
    pair = talking(tmp_path, lambda prompt: "plan</think>yes", TRAITS["opens reasoning"])
    with serving(pair) as server:
        status, error = ask(server, reasoning_effort="none")
        assert (status, error["param"]) == (400, "reasoning_effort")
        assert ask(server)[0] == 200


def test_a_begun_reply_is_continued_as_in_vllm(served: Served) -> None:
    begun = [*HI, SAID]
    told = {"add_generation_prompt": False, "continue_final_message": True}
    assert ask(served, messages=begun, **told) == ask(served, messages=begun)


def test_streams_take_options_that_ask_for_nothing(served: Served) -> None:
    options = {"include_usage": False, "include_obfuscation": False, "continuous_usage_stats": None}
    body = {"model": NAME, "messages": HI, "stream": True, "stream_options": options}
    reply = served.http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200
    assert "usage" not in reply.text


def test_a_prompt_that_is_null_is_no_prompt_less(served: Served) -> None:
    body = {"model": NAME, "prompt": [None, "hi"]}
    assert served.http.post("/v1/completions", json=body).status_code == 400


def test_a_deep_value_is_no_500(served: Served) -> None:
    deep = '{"a":' * 600 + "null" + "}" * 600
    body = f'{{"model":"{NAME}","messages":[{{"role":"user","content":"hi"}}],"metadata":{deep}}}'
    headers = {"content-type": "application/json"}
    reply = served.http.post("/v1/chat/completions", content=body, headers=headers)
    assert reply.status_code in (200, 400)
    assert drop_nulls({"a": [None, {"b": None}]}) == {"a": [{}]}


def test_every_parameter_of_openai_is_known() -> None:
    for params, request in (
        (chat_params.CompletionCreateParamsNonStreaming, ChatRequest),
        (CompletionCreateParamsNonStreaming, CompletionRequest),
    ):
        assert get_type_hints(params).keys() <= request.model_fields.keys()


def test_the_page_lists_every_parameter_that_is_accepted_for_its_value_alone() -> None:
    page = (Path(__file__).parents[2] / "docs" / "server.md").read_text("utf-8")
    missing = [name for name in sorted(UNSUPPORTED | INERT) if f"`{name}`" not in page]
    assert not missing


ODD: list[Any] = [
    None, True, False, 0, 1, -1, 1.5, -(10**30), 10**30, math.nan, math.inf, "", "x", "\ud800", [],
    [[]], [1], [""], ["x", 2], {}, {"a": 1}, {"type": "x"}, {"include_usage": "x"}, {"config": 3},
    {"role": "tool"}, [{"role": "user"}], [{"role": "user", "content": []}],
    [{"role": "user", "content": 5, "name": []}], {"other": 1}, {"\ud800": 1}, b"x", (1,),
]  # fmt: skip
BODIES: dict[type[BaseModel], dict[str, Any]] = {
    ChatRequest: {"model": "m", "messages": HI},
    CompletionRequest: {"model": "m", "prompt": "hi"},
    TokenizeRequest: {"prompt": "hi"},
    ChatMessage: HI[0],
    StreamOptions: {},
    SafeDraftOptions: {},
}


def problems() -> Iterator[Mapping[str, Any]]:
    """What is wrong with odd values of every field of every body."""
    for model, body in BODIES.items():
        bodies = [body | {name: value} for name in (*model.model_fields, "zzz") for value in ODD]
        for changed in (*bodies, {}, None, [], "x"):
            try:
                model.model_validate(changed)
            except ValidationError as error:
                yield from error.errors()


def test_every_kind_of_error_has_words_of_our_own() -> None:
    seen = {problem["type"]: problem for problem in problems()}
    assert len(seen) > 15
    unworded = seen.keys() - errors._WORDS.keys() - {"value_error"}
    assert not unworded, unworded


def test_no_words_of_pydantic_reach_a_client() -> None:
    from fastapi.exceptions import RequestValidationError

    for problem in problems():
        found = [{**problem, "loc": ("body", *problem["loc"])}]
        message = convert_validation_error(RequestValidationError(found)).message
        for foreign in ("nput should", "ield required", " valid ", "xtra input", "Value error"):
            assert foreign not in message.replace("valid Unicode", ""), message
        assert problem["msg"] not in message or problem["type"] == "value_error"


def test_only_our_own_words_describe_a_problem() -> None:
    problem = {"type": "dict_type", "loc": ("safedraft", "config"), "msg": "Input should be x"}
    assert describe(problem) == "it must be an object with named fields"
    assert describe({**problem, "type": "less_than", "ctx": {"lt": 2}}) == "it must be less than 2"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes.", "Yes."),
        ("plan</think>\n\nYes.", "Yes."),
        ("plan[/THINK]Yes.", "Yes."),
        ("<think>\nplan\n</think>\n\nYes.", "<think>\nplan\n</think>\n\nYes."),
        ("Write <think>a</think> around it.", "Write <think>a</think> around it."),
        ("plan", "plan"),
    ],
)
def test_the_answer_is_behind_the_reasoning_that_began_before_the_reply(
    text: str, answer: str
) -> None:
    assert find_answer(text) == answer
