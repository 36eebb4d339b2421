"""Bad requests: each is an error object that names what is wrong, and nothing is decoded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from helpers.templates import TRAITS
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from schemathesis import checks
from serving import NAME, Served, serving
from talking import talking

from safedraft.core.config import SSDConfig
from safedraft.engines.base import Capabilities, Capability
from safedraft.models.registry import PairSpec
from safedraft.server.requests import ChatRequest
from safedraft.text.template import set_variables

EXAMPLES = int(os.environ.get("SAFEDRAFT_EXAMPLES", "15"))
"""Generated requests of each kind; `make test-server` asks for more."""

HI = [{"role": "user", "content": "hi"}]
LIMITS = {"body_bytes": 20_000, "messages": 5, "new_tokens": 100, "stop_strings": 3, "replies": 4}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pair = talking(tmp_path_factory.mktemp("pair"), lambda prompt: "yes")
    with serving(pair, LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def generous(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Everything is allowed."""
    pair = talking(tmp_path_factory.mktemp("pair"), lambda prompt: "yes")
    allowed = ("allow_prefill", "allow_completions", "allow_telemetry")
    settings = dict.fromkeys((*allowed, "requests_may_set_constants"), True)
    with serving(pair, LIMITS, **settings) as server:
        yield server


def post(served: Served, path: str = "/v1/chat/completions", **request: Any) -> httpx.Response:
    return served.http.post(path, **request)


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    return body["error"]


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"model": "other"}, 404, "model_not_found", "model"),
        ({"model": 3}, 400, "invalid_value", "model"),
        ({"messages": []}, 400, "invalid_value", "messages"),
        ({"messages": "hi"}, 400, "invalid_value", "messages"),
        ({"messages": HI * 6}, 400, "invalid_value", "messages"),
        ({"messages": [{"role": "user"}]}, 400, "missing_parameter", "messages[0].content"),
        ({"messages": [{"role": "critic", "content": "x"}]}, 400, "invalid_value",
         "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_value", "messages[0]"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "invalid_value", "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "invalid_value", "messages"),
        ({"messages": [{**HI[0], "name": 3}]}, 400, "invalid_value", "messages[0].name"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "missing_parameter",
         "messages[0].content"),
        ({"messages": None}, 400, "missing_parameter", "messages"),
        ({"messages": [{**HI[0], "names": "Ann"}]}, 400, "unknown_parameter", "messages[0].names"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            "invalid_value",
            "messages[0].content",
        ),
        (
            {"messages": [*HI, {"role": "assistant", "content": "Sure"}]},
            400,
            "prefill_disabled",
            "messages",
        ),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "context_length_exceeded",
         "messages"),
        ({"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, 400, "invalid_value", "max_tokens"),
        ({"n": 5}, 400, "invalid_value", "n"),
        ({"n": 0}, 400, "invalid_value", "n"),
        ({"stop": ["a", "b", "c", "d"]}, 400, "invalid_value", "stop"),
        ({"stop": ["x" * 300]}, 400, "invalid_value", "stop"),
        ({"stop": ""}, 400, "invalid_value", "stop[0]"),
        ({"stop": {"a": 1}}, 400, "invalid_value", "stop"),
        ({"stop": "<|start|>user"}, 400, "invalid_value", "stop"),
        ({"stop_token_ids": [10**6]}, 400, "invalid_value", "stop"),
        ({"stop_token_ids": [-1]}, 400, "invalid_value", "stop_token_ids[0]"),
        ({"stop_token_ids": [1, 2, 3, 4]}, 400, "invalid_value", "stop_token_ids"),
        ({"temperature": -1}, 400, "invalid_value", "temperature"),
        ({"temperature": 2.1}, 400, "invalid_value", "temperature"),
        ({"temperature": 0.001}, 400, "invalid_value", "temperature"),
        ({"top_p": 0}, 400, "invalid_value", "top_p"),
        ({"top_k": -2}, 400, "invalid_value", "top_k"),
        ({"top_k": 2**63}, 400, "invalid_value", "top_k"),
        ({"seed": "1"}, 400, "invalid_value", "seed"),
        ({"n": True}, 400, "invalid_value", "n"),
        ({"stream": "yes"}, 400, "invalid_value", "stream"),
        ({"logprobs": True, "top_logprobs": 11}, 400, "invalid_value", "top_logprobs"),
        ({"seed": 2**63}, 400, "invalid_value", "seed"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "invalid_value", "top_logprobs"),
        ({"top_logprobs": 2}, 400, "invalid_value", "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, 400, "invalid_value", "stream_options"),
        ({"presence_penalty": 2.1}, 400, "invalid_value", "presence_penalty"),
        ({"frequency_penalty": -2.1}, 400, "invalid_value", "frequency_penalty"),
        ({"logit_bias": {"1": 5}}, 400, "shifts_disabled", "logit_bias"),
        ({"logit_bias": {"1": 101}}, 400, "invalid_value", "logit_bias"),
        ({"logit_bias": {"-1": 1}}, 400, "invalid_value", "logit_bias"),
        ({"logit_bias": {str(id): 1 for id in range(1025)}}, 400, "invalid_value", "logit_bias"),
        ({"response_format": {"type": "xml"}}, 400, "unsupported_parameter", "response_format"),
        ({"functions": [{"name": "f"}]}, 400, "unsupported_parameter", "functions"),
        ({"tool_choice": "required"}, 400, "invalid_value", "tool_choice"),
        ({"repetition_penalty": 1.1}, 400, "shifts_disabled", "repetition_penalty"),
        ({"repetition_penalty": 0}, 400, "invalid_value", "repetition_penalty"),
        ({"min_p": 1.1}, 400, "invalid_value", "min_p"),
        ({"ignore_eos": True}, 400, "unsupported_parameter", "ignore_eos"),
        ({"skip_special_tokens": False}, 400, "unsupported_parameter", "skip_special_tokens"),
        ({"metadata": "x"}, 400, "invalid_value", "metadata"),
        ({"chat_template": "{{ messages }}"}, 400, "unknown_parameter", "chat_template"),
        ({"prompt": "hi"}, 400, "unknown_parameter", "prompt"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, 400, "invalid_value",
         "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": "x"}}, 400, "invalid_value",
         "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": []}}, 400, "invalid_value",
         "chat_template_kwargs"),
        ({"messages": [{**HI[0], "reasoning": "x"}]}, 400, "invalid_value", "messages"),
        ({"safedraft": {"telemetry": True}}, 400, "telemetry_disabled", "safedraft.telemetry"),
        ({"safedraft": {"config": {"alpha_union": 0}}}, 400, "constants_disabled",
         "safedraft.config"),
        ({"safedraft": {"rule": "target_only"}}, 400, "rules_disabled", "safedraft.rule"),
        ({"safedraft": {"decoder": "target_only"}}, 400, "unknown_parameter", "safedraft.decoder"),
    ],
)  # fmt: skip
def test_what_a_request_may_not_say(
    served: Served, changes: dict[str, Any], status: int, code: str, param: str
) -> None:
    before = served.service.metrics.render()
    response = post(served, json={"model": NAME, "messages": HI} | changes)
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert decoded(before) == decoded(served.service.metrics.render())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         "messages[0].content: only text is read, as a string or as parts of type text."),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "b": 1}]}]},
         "messages[0].content: a part of type 'text' has a key 'b', which is not known: leave it "
         "out."),
        ({"messages": [{**HI[0], "refusal": "no"}]},
         "messages[0].refusal: only a message of the assistant without a content has one."),
        ({"messages": "hi"}, "messages: it must be a list."),
        ({"stop": 5}, "stop: it must be a string or a list of strings."),
        ({"messages": ["hi"]}, "messages[0]: it must be an object with named fields."),
        ({"n": "x"}, "n: it must be a whole number."),
        ({"temperature": 9}, "temperature: it must be at most 2."),
        ({"temperature": 0.001}, "temperature: it must be 0 (greedy) or at least 0.01."),
        ({"stop": [""]}, "stop[0]: it must not be empty."),
        ({"continue_final_message": True}, "continue_final_message: a last message of the "
         "assistant is continued here, and any other is answered: leave the parameter out, or let "
         "it be false."),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_value_is_said_in_our_own_words(
    served: Served, changes: dict[str, Any], words: str
) -> None:
    error = error_of(post(served, json={"model": NAME, "messages": HI} | changes))
    assert error["message"] == f"Invalid value of {words}"


def test_a_body_of_no_type_is_told_which_it_needs(served: Served) -> None:
    body = json.dumps({"model": NAME, "messages": HI})
    asked = {"content-type": "application/x-www-form-urlencoded"}  # what curl -d sends
    error = error_of(post(served, content=body, headers=asked))
    assert "Content-Type: application/json" in error["message"]


def decoded(metrics: bytes) -> list[bytes]:
    return [line for line in metrics.splitlines() if line.startswith(b"safedraft_blocks_total")]


def test_where_their_number_would_tell_the_scheme_no_alternatives_are_told(tmp_path: Path) -> None:
    config = SSDConfig(alpha_union=2.0)
    with serving(replace(talking(tmp_path, lambda prompt: "fine"), config=config)) as server:
        asked = {"model": NAME, "messages": HI, "logprobs": True}
        said = post(server, json=asked | {"top_logprobs": 1})
        assert said.status_code == 400
        assert "at most 0 are allowed" in error_of(said)["message"]
        assert post(server, json=asked).is_success


@pytest.mark.parametrize(
    "neutral",
    [
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "tools": []},
        {"response_format": {"type": "text"}, "tool_choice": "none", "store": False, "n": None},
        {"stop": [], "seed": None, "max_tokens": None, "stream": False, "modalities": ["text"]},
        {"repetition_penalty": 1.0, "length_penalty": 1, "min_p": 0, "min_tokens": 0},
        {"ignore_eos": False, "skip_special_tokens": True, "use_beam_search": False},
        {"user": "ann", "metadata": {"a": "b"}, "service_tier": "auto", "store": True},
        {"safety_identifier": "a", "prompt_cache_key": "b", "prompt_cache_retention": "24h"},
        {"messages": [{**HI[0], "name": "Ann", "tool_calls": None}]},
        dict.fromkeys(ChatRequest.model_fields.keys() - {"model", "messages"}),
        {"chat_template_kwargs": {}},
        {"max_tokens": 101},
        {"max_completion_tokens": 10**9},
    ],
)
def test_what_changes_nothing_is_accepted(served: Served, neutral: dict[str, Any]) -> None:
    plain, again = (
        post(served, json={"model": NAME, "messages": HI} | more) for more in ({}, neutral)
    )
    assert again.status_code == 200, again.text
    assert again.json()["choices"] == plain.json()["choices"]


def test_more_tokens_than_the_context_has_room_for_end_at_its_end(tmp_path: Path) -> None:
    with serving(talking(tmp_path, lambda prompt: "x" * 90)) as server:
        prompt = "x" * (server.service.pair.context_length - 40)
        asked = {"model": NAME, "messages": [{"role": "user", "content": prompt}]}
        reply = post(server, json=asked | {"max_tokens": 90}).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert 0 < reply["usage"]["completion_tokens"] < 40


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_body"),
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_body"),
        (b"null", 400, "invalid_body"),
        (b"\xff\xfe{}", 400, "invalid_json"),
        (b"[" * 9_000, 400, "invalid_json"),
        (b'{"model":"tiny","messages":[' + b"1," * 4_000 + b"1]}", 400, "invalid_value"),
        (b'{"model": ' + b"9" * 6_000 + b"}", 400, "invalid_json"),
        (b'{"model":"tiny","messages":[],"\\ud800":1}', 400, None),
        (b'{"model":"tiny","messages":[{"role":"user","content":"\\ud83d"}]}', 400, None),
        (b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"seed":NaN}', 400, None),
        (b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"top_p":1e999}', 400, None),
        (b"x" * 30_000, 413, "body_too_large"),
    ],
)
def test_bodies_that_are_no_requests(
    served: Served, body: bytes, status: int, code: str | None
) -> None:
    response = post(served, content=body, headers={"content-type": "application/json"})
    error = error_of(response)
    assert response.status_code == status
    assert code in (None, error["code"])


def test_a_text_of_every_private_character_is_no_500(served: Served) -> None:
    text = "".join(map(chr, range(0xE000, 0xF900)))
    for path, body in (
        ("/v1/chat/completions", {"model": NAME, "messages": [{"role": "user", "content": text}]}),
        ("/tokenize", {"prompt": text}),
    ):
        content = json.dumps(body, ensure_ascii=False).encode()
        response = post(served, path, content=content, headers={"content-type": "application/json"})
        assert response.status_code in (400, 413)


@pytest.mark.parametrize(
    ("path", "changes", "param"),
    [
        ("/v1/chat/completions", {"min_p": 0.1}, "min_p"),
        ("/v1/chat/completions", {"logit_bias": {"1": 1}, "min_p": 0}, "logit_bias"),
        ("/v1/chat/completions", {"logprobs": True}, "logprobs"),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 1}, "logprobs"),
        (
            "/v1/chat/completions",
            {"safedraft": {"config": {"draft_tree_threshold": 0.5}}},
            "safedraft.config",
        ),
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}}, "response_format"),
        ("/v1/completions", {"logprobs": 1}, "logprobs"),
        ("/v1/completions", {"min_p": 0.1}, "min_p"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_under_the_parameter_that_asks_for_it(
    tmp_path: Path, path: str, changes: dict[str, Any], param: str
) -> None:
    pair = talking(tmp_path, lambda prompt: "yes")
    pair.engine.capabilities = Capabilities(dict.fromkeys(Capability, "no engine of this test can"))
    prompt = {"prompt": "hi"} if path == "/v1/completions" else {"messages": HI}
    allowed = {"requests_may_set_constants": True, "allow_completions": True}
    with serving(pair, LIMITS, **allowed) as server:
        response = post(server, path, json={"model": NAME, **prompt, **changes})
        assert (response.status_code, error_of(response)["param"]) == (400, param)
        assert "no engine of this test can" in error_of(response)["message"]


def test_a_page_cannot_send_json_as_plain_text(served: Served) -> None:
    body = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        response = post(served, content=body, headers={"content-type": kind})
        assert (response.status_code, error_of(response)["code"]) == (400, "invalid_body")


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/completions", {"model": NAME, "prompt": "hi"}, 403, "completions_disabled"),
        ("/v1/embeddings", {"model": NAME, "input": "hi"}, 404, "not_found"),
        ("/v1/models", {}, 405, "method_not_allowed"),
        ("/tokenize", {}, 400, "invalid_value"),
        ("/tokenize", {"prompt": "a", "messages": HI}, 400, "invalid_value"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model_not_found"),
        ("/tokenize", {"messages": [{"role": "user", "content": " "}]}, 400, "invalid_value"),
        ("/tokenize", {"messages": [*HI, {"role": "assistant", "content": "x"}]}, 400,
         "prefill_disabled"),
    ],
)  # fmt: skip
def test_other_addresses(
    served: Served, path: str, body: dict[str, Any], status: int, code: str
) -> None:
    response = post(served, path, json=body)
    assert (response.status_code, error_of(response)["code"]) == (status, code)


def test_raw_texts_are_checked_as_well(tmp_path: Path) -> None:
    pair = talking(tmp_path, lambda prompt: "yes")
    with serving(pair, LIMITS, allow_completions=True) as server:
        for changes, param in (
            ({"prompt": [1, 2]}, "prompt[0]"),
            ({"prompt": ["a"] * 5}, "n"),
            ({"prompt": ""}, "prompt[0]"),
            ({"echo": True}, "echo"),
            ({"best_of": 2}, "best_of"),
            ({"suffix": "x"}, "suffix"),
            ({"logprobs": 21}, "logprobs"),
        ):
            response = post(
                server, "/v1/completions", json={"model": NAME, "prompt": "hi"} | changes
            )
            if param == "prompt[0]" and changes["prompt"]:
                assert "token ids could hold control" in error_of(response)["message"]
            assert (response.status_code, error_of(response)["param"]) == (400, param)


def test_the_key_is_asked_of_everything_but_health(tmp_path: Path) -> None:
    with serving(talking(tmp_path, lambda prompt: "yes"), api_key="secret") as server:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/tokenize", "/nowhere"):
            for value in ("", "Bearer secre", "secret", "Basic !!", "Bearer sécret"):
                response = httpx.get(server.url + path, headers={"Authorization": value.encode()})
                assert (response.status_code, error_of(response)["code"]) == (
                    401,
                    "invalid_api_key",
                )
        assert httpx.get(f"{server.url}/health").status_code == 200
        known = {"Authorization": "Bearer secret"}
        assert httpx.get(f"{server.url}/v1/models", headers=known).status_code == 200
        # A body is not read before the key is known: this one would be too large.
        assert post(server, content=b"x" * 3_000_000).status_code == 401


def test_without_a_key_only_this_machines_names_are_answered_to(served: Served) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example:80", "[", ""):
        response = httpx.get(f"{served.url}/v1/models", headers={"Host": host})
        assert (response.status_code, error_of(response)["code"]) == (400, "invalid_host")
    for host in ("localhost:8000", "LOCALHOST", "[::1]:8000", "127.0.0.1"):
        assert httpx.get(f"{served.url}/health", headers={"Host": host}).status_code == 200
    assert "access-control-allow-origin" not in httpx.get(f"{served.url}/health").headers


def test_a_request_cannot_leave_the_mode_that_the_draft_is_trained_for(tmp_path: Path) -> None:
    pair = talking(tmp_path, lambda prompt: "yes", TRAITS["a switch"])
    spec = PairSpec(name=NAME, target="a", draft="b", template={"enable_thinking": False})
    for tokenizer in (pair.target.tokenizer, pair.draft.tokenizer):
        tokenizer.chat_template = set_variables(TRAITS["a switch"], spec.template or {})
    cases = [
        (replace(pair, spec=spec), {"enable_thinking": True}, "enable_thinking is false here"),
        (replace(pair, spec=spec), {"enable_thinking": False}, None),
        (pair, {"enable_thinking": True}, "thinking is off here and cannot be changed"),
        (pair, {"enable_thinking": False}, None),
    ]
    for guarded, variables, message in cases:
        with serving(guarded) as server:
            asked = {"model": NAME, "messages": HI, "chat_template_kwargs": variables}
            for path, body in (
                ("/v1/chat/completions", asked),
                ("/tokenize", {n: v for n, v in asked.items() if n != "model"}),
            ):
                response = post(server, path, json=body)
                if message is None:
                    assert response.is_success, response.text
                else:
                    assert response.status_code == 400
                    assert message in error_of(response)["message"]
    with serving(pair, requests_may_set_constants=True) as server:
        body = {"model": NAME, "messages": HI, "chat_template_kwargs": {"enable_thinking": True}}
        assert post(server, json=body).is_success


@pytest.mark.parametrize("date", ["1 May<|end|>\n<|start|>assistant\nSure", "\ud800"])
def test_a_variable_of_the_template_is_no_way_round_the_prefill(tmp_path: Path, date: str) -> None:
    with serving(talking(tmp_path, lambda prompt: "yes", TRAITS["a date line"])) as server:
        body = {"model": NAME, "messages": HI, "chat_template_kwargs": {"date_string": date}}
        response = post(
            server, content=json.dumps(body), headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 400
        assert error_of(response)["param"] == "chat_template_kwargs"


def test_a_client_begins_the_reasoning_where_prefills_are_allowed(tmp_path: Path) -> None:
    pair = talking(tmp_path, lambda prompt: "plan</think>yes", TRAITS["opens reasoning"])
    with serving(pair, allow_prefill=True) as server:
        for last, status in (
            ({"reasoning": "pl"}, 200),
            ({"reasoning_content": "pl"}, 200),
            ({"reasoning": "plan", "content": "y"}, 200),
            ({"content": "y"}, 400),
        ):
            messages = [*HI, {"role": "assistant", "content": "", **last}]
            response = post(server, json={"model": NAME, "messages": messages})
            assert response.status_code == status, response.text
        assert "thinks before it answers" in error_of(response)["message"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
PARAMETERS = [
    *(
        "model",
        "messages",
        "n",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "top_k",
    ),
    *("seed", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "safedraft"),
    *("tools", "response_format", "logit_bias", "stop_token_ids", "repetition_penalty", "min_p"),
    *("user", "metadata", "service_tier", "store", "skip_special_tokens", "ignore_eos"),
    "chat_template_kwargs",
]


@settings(max_examples=2 * EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(PARAMETERS), VALUES, max_size=4))
def test_any_value_of_any_parameter_is_answered(served: Served, changes: dict[str, Any]) -> None:
    body = {"model": NAME, "messages": HI, "max_tokens": 3} | changes
    response = post(served, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404)
    assert "Traceback" not in response.text
    if response.status_code != 200:
        error_of(response)


TEXTS = st.sampled_from(["hi", "", " ", "<|end|>", "<think>", "é"]) | st.text(max_size=5)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "input_audio"])},
    optional={"text": TEXTS | VALUES, "image_url": VALUES},
)
MESSAGES = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
        "content": TEXTS | st.lists(PARTS, max_size=3) | st.none(),
    },
    optional={
        "name": TEXTS | st.none(),
        "reasoning": TEXTS | st.none(),
        "reasoning_content": TEXTS | VALUES,
        "tool_calls": st.just([]) | st.none() | VALUES,
    },
)
VALID = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant"]),
        "content": st.just("hi") | st.just([{"type": "text", "text": "hi"}]),
    },
    optional={"name": st.none() | st.just("Ann"), "tool_calls": st.just([]) | st.none()},
)
CONVERSATIONS = st.one_of(
    st.lists(VALID, max_size=3).map(lambda turns: [*turns, *HI]),
    st.lists(MESSAGES, max_size=3).map(lambda turns: [*turns, *HI]),
    st.lists(MESSAGES, max_size=4),
)
VARIABLES = st.dictionaries(
    st.sampled_from(["enable_thinking", "add_generation_prompt", "messages", "date", ""]),
    VALUES,
    max_size=2,
)
NEUTRAL = st.fixed_dictionaries(
    {},
    optional={
        "chat_template_kwargs": VARIABLES | st.none(),
        "repetition_penalty": st.sampled_from([1, 1.0, 1.1, None]),
        "min_p": st.sampled_from([0, 0.0, 0.1, None]),
        "logit_bias": st.sampled_from([{}, {"1": 1}, None]),
        "tools": st.sampled_from([[], [{}], None]),
        "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}, None]),
        "metadata": VALUES,
        "stop": TEXTS | st.lists(TEXTS, max_size=2) | st.none(),
        "temperature": st.sampled_from([0, 1, None]),
        "stream": st.sampled_from([False, None]),
    },
)


@settings(max_examples=2 * EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(CONVERSATIONS, st.just({}) | NEUTRAL)
def test_any_conversation_is_answered_by_both_models_or_refused(
    generous: Served, messages: list[dict[str, Any]], more: dict[str, Any]
) -> None:
    body = {"model": NAME, "messages": messages, "max_tokens": 3} | more
    body["safedraft"] = {"telemetry": True}
    content = json.dumps(body)
    response = post(generous, content=content, headers={"content-type": "application/json"})
    event(str(response.status_code))
    assert response.status_code in (200, 400)
    assert "Traceback" not in response.text
    if response.status_code == 400:
        error_of(response)
        return
    for choice in response.json()["choices"]:
        tokens = choice["safedraft"]["tokens"]
        assert tokens
        assert all(token["scheme"] in ("intersection", "union") for token in tokens)
        assert all(token["draft_probability"] is not None for token in tokens)


CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def documented(served: Served, path: str, method: str) -> Any:
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")[path][method]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "asked"),
    [("/v1/chat/completions", {"messages": HI}), ("/v1/completions", {"prompt": "hi"})],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_document_names_both_forms_of_a_reply(
    generous: Served, path: str, asked: dict[str, Any], stream: bool
) -> None:
    case = documented(generous, path, "POST").Case(
        body={"model": NAME, "max_tokens": 3, "stream": stream} | asked,
        media_type="application/json",
    )
    response = case.call()
    assert response.status_code == 200
    case.validate_response(response, checks=CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/v1/chat/completions", "POST"),
        ("/v1/completions", "POST"),
        ("/tokenize", "POST"),
        ("/v1/models/{name}", "GET"),
        ("/v1/models", "GET"),
        ("/health", "GET"),
        ("/metrics", "GET"),
    ],
)
def test_the_openapi_document_holds(generous: Served, path: str, method: str) -> None:
    operation = documented(generous, path, method)

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy())
    def holds(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and case.body.get("model"):
            case.body["model"] = NAME  # or else every request ends at its name
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        assert "Traceback" not in response.text

    holds()
