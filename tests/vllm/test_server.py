"""``safedraft serve --engine vllm``: processes, HTTP and metrics, all of it vLLM's own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
from conftest import save_pair, save_tokenizer
from helpers.templates import TRAITS

import safedraft
from safedraft.core.errors import IncompatiblePairError
from safedraft.engines.vllm.setup import plan
from safedraft.models.registry import choose_pair

pytestmark = pytest.mark.vllm

KEY = {"Authorization": "Bearer sesame"}
QUESTION = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A target and a draft that speak bytes, with heads that vLLM's kernels know."""
    target, draft = save_pair(tmp_path_factory.mktemp("speaking"), hidden_size=128, head_dim=32)
    return {"target": str(target), "draft": str(draft)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server writes its log."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(models: dict[str, str], folder: Path) -> Iterator[str]:
    with serving(
        models, folder, "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
        "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
    ) as address:  # fmt: skip
        yield address


@contextmanager
def serving(
    models: dict[str, str], folder: Path, *options: str, **environment: str
) -> Iterator[str]:
    """A server of the pair, by its address."""
    words = [
        "--engine", "vllm", "--target", models["target"], "--draft", models["draft"],
        "--set", "draft_tokens=3", "--set", "prefill_scheme=union",
        "--served-model-name", "tiny", "--max-num-seqs", "4", *options,
    ]  # fmt: skip
    with started(words, folder, **environment) as address:
        yield address


@contextmanager
def started(words: Sequence[str], folder: Path, **environment: str) -> Iterator[str]:
    """The address of the small server that ``safedraft serve`` starts with these words."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "safedraft", "serve", "--host", "127.0.0.1", "--port", str(port),
        *words, "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "256", "--kv-cache-memory-bytes", "64M",
    ]  # fmt: skip
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "SAFEDRAFT_API_KEY": "sesame",
        **environment,
    }  # fmt: skip
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urlopen(address + "/health")
        except (URLError, ConnectionError):
            time.sleep(0.5)
        else:
            return
    pytest.fail(log.read_text()[-4000:])


def ask(server: str, **body: Any) -> tuple[int, dict[str, Any]]:
    return post(server, "chat/completions", messages=QUESTION, **body)


def post(server: str, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    asked = {"model": "tiny", "max_tokens": 24, "temperature": 0, **body}
    request = Request(
        f"{server}/v1/{path}",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json", **KEY},
    )
    try:
        with urlopen(request) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def events_of(server: str, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream of ``/v1/chat/completions``, which ends as it should."""
    asked = {"model": "tiny", "max_tokens": 24, "temperature": 0, "stream": True, **body}
    request = Request(
        f"{server}/v1/chat/completions",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json", **KEY},
    )
    with urlopen(request) as answer:
        *events, end = answer.read().decode().removesuffix("\n\n").split("\n\n")
    assert end == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_it_answers_as_the_first_engine(server: str, models: dict[str, str]) -> None:
    pair = safedraft.load_pair(
        **models, dtype="float32", device="cpu", config=safedraft.SSDConfig()
    )
    expected = pair.generate(QUESTION, sampling=safedraft.SamplingParams(max_new_tokens=24))
    status, answer = ask(server)
    assert status == 200
    choice = answer["choices"][0]
    said, meant = (
        text.replace("\ufffd", "") for text in (choice["message"]["content"], expected.text)
    )
    assert said == meant  # vLLM shows broken characters in its own way
    assert choice["finish_reason"] == expected.finish_reason
    assert answer["usage"]["completion_tokens"] == len(expected.trace)


def text_of(answer: tuple[int, dict[str, Any]]) -> str:
    """The text of an answer, without broken characters, which vLLM shows in its own way."""
    assert answer[0] == 200, answer[1]
    return str(answer[1]["choices"][0]["message"]["content"]).replace("\ufffd", "")


def test_min_p_is_that_of_the_first_engine(server: str, models: dict[str, str]) -> None:
    sampled = {"temperature": 1.0, "seed": 5}
    pair = safedraft.load_pair(
        **models, dtype="float32", device="cpu", config=safedraft.SSDConfig()
    )
    expected = pair.generate(QUESTION, max_new_tokens=24, min_p=0.5, **sampled)
    said = text_of(ask(server, min_p=0.5, **sampled))
    assert said == expected.text.replace("\ufffd", "")
    assert said != text_of(ask(server, **sampled))


def test_tokens_of_the_clients_choice_are_biased_and_forbidden_where_the_operator_allows_it(
    models: dict[str, str], tmp_path: Path
) -> None:
    with serving(models, tmp_path, "--allow", "constants") as address:
        answer = ask(
            address, logit_bias={"65": 100}, max_tokens=4, n=2, return_token_ids=True,
            temperature=1.0, vllm_xargs={"ssd_statistics": False},
        )  # fmt: skip
        assert [choice["token_ids"] for choice in answer[1]["choices"]] == [[65] * 4] * 2
        free = ask(
            address, allowed_token_ids=[65, 66, 67], temperature=1.0, seed=3, ignore_eos=True
        )
        assert set(text_of(free)) == set("bcd")
        words = [text_of(free)[:2], "d"]
        answer = ask(
            address, allowed_token_ids=[65, 66, 67], bad_words=words, temperature=1.0, seed=3,
            ignore_eos=True, vllm_xargs={"ssd_statistics": True},
        )  # fmt: skip
        assert len(text_of(answer)) == 24
        assert not any(word in text_of(answer) for word in words)
        assert answer[1]["kv_transfer_params"]["safedraft"]["matches"] > 0
        status, refused = ask(address, logit_bias={"100000": 1})
        assert (status, "ids end at" in refused["error"]["message"]) == (400, True)


def assert_reported(content: Sequence[dict[str, Any]], trace: Sequence[safedraft.Token]) -> None:
    """The report of a reply of ``/v1/chat/completions`` has the log probabilities of its trace."""
    assert [one["logprob"] for one in content] == pytest.approx(
        [token.logprob for token in trace], abs=1e-3
    )
    for one, token in zip(content, trace, strict=True):
        others = [other.logprob for other in token.top_logprobs if other.id != token.id]
        values = [token.logprob, *others]  # vLLM has the token itself first
        assert [other["logprob"] for other in one["top_logprobs"]] == pytest.approx(
            values[: len(token.top_logprobs)], abs=1e-3
        )
        assert all(
            other["token"].encode() == bytes(other["bytes"]) for other in one["top_logprobs"]
        )


def test_log_probabilities_are_those_of_the_composite(server: str, models: dict[str, str]) -> None:
    pair = safedraft.load_pair(
        **models, dtype="float32", device="cpu", config=safedraft.SSDConfig()
    )
    expected = [
        pair.generate(QUESTION, max_new_tokens=24, temperature=1.0, seed=seed, top_logprobs=3)
        for seed in (5, 6)
    ]
    asked = {"temperature": 1.0, "seed": 5, "logprobs": True, "top_logprobs": 3}
    status, answer = ask(server, n=2, **asked)
    assert status == 200
    for choice, reply in zip(answer["choices"], expected, strict=True):
        assert_reported(choice["logprobs"]["content"], reply.trace)
    greedy = pair.generate(QUESTION, max_new_tokens=24, top_logprobs=1)
    status, answer = ask(server, logprobs=True, top_logprobs=1)
    assert status == 200
    assert_reported(answer["choices"][0]["logprobs"]["content"], greedy.trace)
    alone = pair.generate(QUESTION, max_new_tokens=1, top_logprobs=1, rule="target_only")
    first = answer["choices"][0]["logprobs"]["content"][0]
    assert first["logprob"] != pytest.approx(alone.trace[0].logprob, abs=0.01)
    streamed = events_of(server, messages=QUESTION, **asked)
    parts = [choice["logprobs"] for event in streamed for choice in event["choices"]]
    content = [one for part in parts if part for one in part["content"]]
    assert len([part for part in parts if part]) > 1
    assert_reported(content, expected[0].trace)


def test_raw_text_has_them_in_the_form_for_completions(server: str, models: dict[str, str]) -> None:
    pair = safedraft.load_pair(
        **models, dtype="float32", device="cpu", config=safedraft.SSDConfig(prefill_scheme="union")
    )
    ids = pair.target.tokenizer("Hello").input_ids
    sampling = safedraft.SamplingParams(max_new_tokens=24)
    stream = pair.stream_ids(ids, sampling=sampling, top_logprobs=2, turn_begun=True)
    expected = stream.drain().trace
    status, answer = post(
        server, "completions", prompt="Hello", logprobs=2, return_tokens_as_token_ids=True
    )
    assert status == 200
    found = answer["choices"][0]["logprobs"]
    assert found["token_logprobs"] == pytest.approx([one.logprob for one in expected], abs=1e-3)
    for likely, token in zip(found["top_logprobs"], expected, strict=True):
        shown = {one.id: one.logprob for one in (token, *token.top_logprobs)}
        named = {f"token_id:{id}": logprob for id, logprob in shown.items()}
        assert likely == pytest.approx(named, abs=1e-3)
    status, refused = post(server, "completions", prompt="Hello", logprobs=2, echo=True)
    assert (status, "prompt_logprobs" in refused["error"]["message"]) == (400, True)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/invocations", "/metrics", "/tokenize"])
@pytest.mark.parametrize("key", [{}, {"Authorization": "Bearer open"}])
def test_nothing_but_health_goes_without_the_key(
    server: str, path: str, key: dict[str, str]
) -> None:
    body = None if path == "/metrics" else json.dumps({"messages": QUESTION}).encode()
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(server + path, body, {"Content-Type": "application/json", **key}))
    assert refused.value.code == 401
    assert urlopen(server + "/health").status == 200


def test_two_sampled_replies_differ_and_come_again(server: str) -> None:
    said = [ask(server, n=2, temperature=1.0, seed=5)[1]["choices"] for _ in range(2)]
    texts = [[choice["message"]["content"] for choice in choices] for choices in said]
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"logprobs": True, "top_logprobs": 21}, "max allowed: 20"),
        ({"prompt_logprobs": 1}, "prompt_logprobs is not supported"),
        ({"logprobs": True, "logprob_token_ids": [65]}, "logprob_token_ids is not supported"),
        ({"use_beam_search": True, "n": 2}, "beam search"),
        ({"logit_bias": {"65": 1.0}}, "logit_bias: the operator does not let"),
        ({"vllm_xargs": {"ssd_logit_bias": [65, 1]}}, "logit_bias: the operator does not let"),
        ({"bad_words": ["Sorry"]}, "bad_words: the operator does not let"),
        ({"allowed_token_ids": [65]}, "allowed_token_ids: the operator does not let"),
        ({"repetition_penalty": 1.1}, "repetition_penalty: the operator does not let"),
        ({"min_tokens": 3}, "min_tokens is not supported"),
        ({"stop": "<|start|>user"}, r"give '<\|start\|>' alone"),
        ({"vllm_xargs": {"ssd_alpha_union": 0.0}}, "the operator does not let"),
        ({"vllm_xargs": {"ssd_trace": "mine"}}, "keeps no traces"),
        ({"vllm_xargs": {"ssd_statistics": "yes"}}, "neither true nor false"),
        ({"vllm_xargs": {"ssd_statistics": True}, "n": 2, "temperature": 1}, "leave n at 1"),
    ],
)
def test_what_goes_by_the_rule_is_a_400(server: str, body: dict[str, Any], reason: str) -> None:
    status, answer = ask(server, **body)
    assert status == 400
    assert re.search(reason, answer["error"]["message"])
    assert ask(server)[0] == 200  # and harms nobody else


SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["tall", "small"]}, "ready": {"type": "boolean"}},
    "required": ["kind", "ready"],
    "additionalProperties": False,
}


def test_a_reply_is_within_its_schema_and_decided_by_both_models(server: str) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    for temperature in (0, 1):
        status, answer = ask(
            server, response_format=schema, max_tokens=64, temperature=temperature, seed=3,
            vllm_xargs={"ssd_statistics": True},
        )  # fmt: skip
        assert status == 200
        found = json.loads(answer["choices"][0]["message"]["content"])
        assert found["kind"] in ("tall", "small")
        assert isinstance(found["ready"], bool)
        told = answer["kv_transfer_params"]["safedraft"]
        assert told["tokens"] == answer["usage"]["completion_tokens"]
        assert told["matches"] > 0


def test_a_forced_tool_call_has_the_arguments_of_its_schema(server: str) -> None:
    function = {"name": "choose", "strict": True, "parameters": SCHEMA}
    status, answer = ask(
        server, max_tokens=160, tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "choose"}},
    )  # fmt: skip
    assert status == 200
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "choose"
    assert json.loads(call["function"]["arguments"])["kind"] in ("tall", "small")


def test_a_reply_tells_its_statistics_on_request(server: str, models: dict[str, str]) -> None:
    pair = safedraft.load_pair(
        **models, dtype="float32", device="cpu", config=safedraft.SSDConfig()
    )
    reply = pair.generate(QUESTION, sampling=safedraft.SamplingParams(max_new_tokens=24))
    expected = {
        "tokens": reply.statistics.tokens,
        "matches": reply.statistics.matches,
        "match_ratio": reply.statistics.match_ratio,
        "union_share": sum(token.scheme == "union" for token in reply.trace) / len(reply.trace),
    }
    wanted = {"ssd_statistics": True}
    told = ask(server, vllm_xargs=wanted)[1]["kv_transfer_params"]["safedraft"]
    assert 1 <= told.pop("blocks") <= told["tokens"]
    assert told == pytest.approx(expected)
    status, answer = post(server, "completions", prompt="Hello", vllm_xargs=wanted)
    assert status == 200
    told = answer["kv_transfer_params"]["safedraft"]
    assert told["tokens"] == answer["usage"]["completion_tokens"]
    assert ask(server)[1]["kv_transfer_params"] is None
    assert ask(server, vllm_xargs={"ssd_statistics": False})[1]["kv_transfer_params"] is None


def test_a_begun_turn_starts_in_the_scheme_for_it(server: str) -> None:
    begun = [*QUESTION, {"role": "assistant", "content": "Sure, "}]
    continued = {"continue_final_message": True, "add_generation_prompt": False}
    for body, union_share in (
        ({"messages": QUESTION}, 0),
        ({"messages": begun, **continued}, 1),
    ):
        wanted = {"max_tokens": 1, "vllm_xargs": {"ssd_statistics": True}}
        status, answer = post(server, "chat/completions", **body, **wanted)
        assert status == 200
        assert answer["kv_transfer_params"]["safedraft"]["union_share"] == union_share


def test_a_reply_that_a_stop_string_ends_tells_them_too(server: str) -> None:
    said = ask(server)[1]["choices"][0]["message"]["content"]
    stop = next(one for one in said[3:] if one.isascii())
    status, answer = ask(server, stop=stop, vllm_xargs={"ssd_statistics": True})
    assert status == 200
    assert answer["choices"][0]["finish_reason"] == "stop"
    told = answer["kv_transfer_params"]["safedraft"]
    assert 0 <= told["tokens"] - answer["usage"]["completion_tokens"] < 4


def control_token(models: dict[str, str]) -> int:
    from transformers import AutoTokenizer

    return int(AutoTokenizer.from_pretrained(models["target"]).convert_tokens_to_ids("<|start|>"))


def test_a_stop_string_that_is_a_control_token_ends_the_reply(
    server: str, models: dict[str, str]
) -> None:
    start = control_token(models)
    for seed in range(40):
        sampled = {"temperature": 1.5, "seed": seed, "max_tokens": 200, "ignore_eos": True}
        whole = ask(server, **sampled, return_token_ids=True)[1]["choices"][0]["token_ids"]
        if start not in whole:
            continue
        stopped = ask(server, **sampled, stop=["<|start|>"])[1]
        assert stopped["choices"][0]["finish_reason"] == "stop"
        assert stopped["usage"]["completion_tokens"] == whole.index(start) + 1
        return
    pytest.fail("no reply has the token")


def test_each_reply_is_counted_and_a_line_of_the_log(server: str, folder: Path) -> None:
    counted = 'safedraft_replies_total{finish_reason="length",guarded="false",refused="false"}'
    before, lines = figures(server).get(counted, 0), lines_of(folder)
    secret = [{"role": "user", "content": "Hello there, Ann"}]
    for more in ({}, {"n": 2, "temperature": 1.0}, {"vllm_xargs": {"ssd_statistics": True}}):
        body = {"messages": secret, "max_tokens": 4, "ignore_eos": True, **more}
        assert post(server, "chat/completions", **body)[0] == 200
    assert figures(server)[counted] == before + 4
    new = lines_of(folder)[len(lines) :]
    assert len(new) == 4
    for line in new:
        assert "id=chatcmpl-" in line
        assert "model='tiny' tokens=4 seconds=" in line
        assert "guarded=false finish_reason=length" in line
        assert "Ann" not in line
    assert ["union=-" in line for line in new] == [True, True, True, False]
    assert "union=0.00" in new[3]


def test_a_reply_that_a_client_leaves_is_counted_as_interrupted(server: str) -> None:
    counted = 'safedraft_replies_total{finish_reason="interrupted",guarded="false",refused="false"}'
    before = figures(server).get(counted, 0)
    body = {"model": "tiny", "messages": QUESTION, "stream": True, "ignore_eos": True}
    request = Request(
        server + "/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **KEY},
    )
    with urlopen(request) as answer:
        answer.readline()
    deadline = time.monotonic() + 20
    while figures(server).get(counted, 0) == before:
        assert time.monotonic() < deadline, "the reply is not counted"
        time.sleep(0.2)


def lines_of(folder: Path) -> list[str]:
    log = (folder / "log").read_text().splitlines()
    return [line for line in log if "finish_reason=" in line]


def figures(server: str) -> dict[str, float]:
    """SafeDraft's metrics, by name with labels."""
    lines = urlopen(Request(server + "/metrics", headers=KEY)).read().decode().splitlines()
    known = [line.rpartition(" ") for line in lines if line.startswith("safedraft_")]
    return {name: float(value) for name, _, value in known}


def test_a_stream_that_should_tell_them_is_an_error_and_no_reply(server: str) -> None:
    wanted = {"ssd_statistics": True}
    (event,) = events_of(server, messages=QUESTION, vllm_xargs=wanted)  # vLLM has begun the stream
    assert event["error"]["code"] == 400
    assert "no field for them" in event["error"]["message"]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="each engine is bound to a core of its own")
def test_two_data_parallel_engines_answer_at_one_address(
    server: str, models: dict[str, str], tmp_path: Path
) -> None:
    def said(address: str, seed: int) -> Any:
        status, answer = ask(address, temperature=1.0, seed=seed)
        assert status == 200
        return answer["choices"][0]["message"]["content"]

    alone = [said(server, seed) for seed in range(8)]
    bound = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    with (
        serving(models, tmp_path, "--data-parallel-size", "2", **bound) as address,
        ThreadPoolExecutor(8) as clients,
    ):
        together = list(clients.map(said, [address] * 8, range(8)))
    assert together == alone
    assert len(set(together)) > 1


def test_what_was_decided_is_in_the_metrics(server: str) -> None:
    before = figures(server)
    tokens = ask(server)[1]["usage"]["completion_tokens"]
    after = figures(server)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert sum(grown[name] for name in grown if name.startswith("safedraft_tokens")) == tokens
    assert 1 <= grown["safedraft_blocks_total"] <= tokens


def test_one_template_serves_both_and_requests_cannot_leave_its_mode(
    tmp_path: Path,
) -> None:
    folders = save_pair(tmp_path / "models", hidden_size=128, head_dim=32)
    for folder, trait in zip(folders, ("a switch", "plain"), strict=True):
        save_tokenizer(folder, template=TRAITS[trait])
    models = dict(zip(("target", "draft"), map(str, folders), strict=True))
    apart = choose_pair(**models, use_adapter=False)
    with pytest.raises(IncompatiblePairError, match="thinks"):
        plan(apart)
    options = ["--template-from", "target", "--template", "enable_thinking=false"]
    with serving(models, tmp_path, *options) as address:
        on = {"enable_thinking": True}
        lengths = [
            ask(address, max_tokens=1, **more)[1]["usage"]["prompt_tokens"]
            for more in ({}, {"chat_template_kwargs": on})
        ]
    expected = safedraft.load_pair(
        **models, use_adapter=False, template={"enable_thinking": False}, template_from="target"
    ).prompts("Hello")
    assert expected.target == expected.draft
    assert lengths == 2 * [len(expected.target)]


def test_templates_that_differ_name_the_way_out(tmp_path: Path) -> None:
    folders = save_pair(tmp_path, hidden_size=128, head_dim=32)
    save_tokenizer(folders[0], template=TRAITS["a default system prompt"])
    models = dict(zip(("target", "draft"), map(str, folders), strict=True))
    with pytest.raises(IncompatiblePairError, match="--template-from target"):
        plan(choose_pair(**models, use_adapter=False))
    assert plan(choose_pair(**models, use_adapter=False, template_from="target"))
