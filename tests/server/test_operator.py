"""What an operator sees: pages, headers, counts of replies, and a log without texts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.templates import TRAITS
from serving import NAME, Served, serving
from talking import talking

from safedraft.core.config import SSDConfig
from safedraft.models.registry import PairSpec
from safedraft.pair import Pair
from safedraft.prompts.phrases import WINDOW
from safedraft.server.requests import ChatRequest
from safedraft.server.settings import PLAYGROUND, Limits

GUARDED = PairSpec(name="own", target="big", draft="small", adapter="some/adapter")
BARE = PairSpec(name="own", target="big", draft="small", bare_draft=True)
REFUSAL = "I'm sorry, but I can't help with that."


def pair_of(folder: Path, spec: PairSpec | None, says: str) -> Pair:
    return replace(talking(folder, lambda prompt: says), spec=spec)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pair = pair_of(tmp_path_factory.mktemp("pair"), GUARDED, REFUSAL)
    with serving(pair) as server:
        yield server


def ask(served: Served, **more: Any) -> httpx.Response:
    body = {"model": NAME, "messages": [{"role": "user", "content": "a secret"}]} | more
    return served.http.post("/v1/chat/completions", json=body)


def test_the_root_leads_to_a_page_that_loads_nothing(served: Served) -> None:
    reply = httpx.get(served.url, follow_redirects=True)
    assert reply.url.path == "/docs"
    assert reply.headers["content-type"].startswith("text/html")
    for part in ("POST /v1/chat/completions", "<code>messages</code>", "openapi.json", NAME):
        assert part in reply.text
    assert "<script" not in reply.text
    assert "http://" not in reply.text.replace("http://127.0.0.1", "")
    assert "https://" not in reply.text


def test_the_root_leads_to_the_playground_where_there_is_one(tmp_path: Path) -> None:
    with serving(pair_of(tmp_path, GUARDED, "yes"), api_key="k", **PLAYGROUND) as server:
        assert httpx.get(server.url).headers["location"] == "/playground/"


@pytest.mark.parametrize(
    ("asked", "temperature", "top_p"),
    [
        ({"temperature": 2.0, "top_p": 1.0}, 0.7, 0.9),
        ({"temperature": 1.0}, 0.7, 0.9),
        ({"temperature": 0.5, "top_p": 0.8}, 0.5, 0.8),
        ({}, 0.0, 0.9),
    ],
)
def test_sampling_is_capped(asked: dict[str, Any], temperature: float, top_p: float) -> None:
    messages = [{"role": "user", "content": "hi"}]
    request = ChatRequest.model_validate({"model": NAME, "messages": messages} | asked)
    sampling = request.build_sampling(0, Limits(temperature=0.7, top_p=0.9), None)
    assert (sampling.temperature, sampling.top_p) == (temperature, top_p)
    free = request.build_sampling(0, Limits(), None)
    assert (free.temperature, free.top_p) == (asked.get("temperature", 0), asked.get("top_p", 1))


def test_browsers_are_asked_for_the_key_at_its_pages(tmp_path: Path) -> None:
    with serving(pair_of(tmp_path, GUARDED, "yes"), api_key="k") as server:
        refused = httpx.get(server.url, follow_redirects=True)
        assert refused.url.path == "/docs"
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic")
        assert httpx.get(f"{server.url}/docs", auth=("any", "k")).status_code == 200


@pytest.mark.parametrize(
    ("spec", "says", "guarded", "refused"),
    [
        (GUARDED, REFUSAL, "true", "true"),
        (GUARDED, "Yes, gladly.", "true", "false"),
        (BARE, REFUSAL, "false", "true"),
        (None, "Yes, gladly.", "false", "false"),
    ],
)
def test_replies_are_counted_by_whether_they_were_guarded_and_refused(
    tmp_path: Path, spec: PairSpec | None, says: str, guarded: str, refused: str
) -> None:
    with serving(pair_of(tmp_path, spec, says), guard_header=True) as server:
        for stream in (False, True):
            assert ask(server, stream=stream).headers["x-safedraft-guarded"] == guarded
        counted = server.http.get("/metrics").text
    labels = f'finish_reason="stop",guarded="{guarded}",refused="{refused}"'
    assert f"safedraft_replies_total{{{labels}}} 2.0" in counted


@pytest.mark.parametrize(
    ("own", "guarded"),
    [
        ({"config": {}}, "true"),
        ({"config": {"bin_size": 7}}, "true"),  # the pair's own
        ({"rule": "ssd"}, "true"),  # the same
        ({"config": {"alpha_union": 0, "alpha_intersection": 0, "alpha_min": 0}}, "false"),
        ({"config": {"threshold": 0}}, "false"),
        ({"rule": "target_only"}, "false"),
        ({"rule": "speculative"}, "false"),
    ],
)
def test_a_reply_with_constants_or_a_rule_of_its_own_is_not_guarded(
    tmp_path: Path, own: dict[str, Any], guarded: str
) -> None:
    with serving(
        pair_of(tmp_path, GUARDED, REFUSAL), guard_header=True, requests_may_set_constants=True
    ) as server:
        reply = ask(server, safedraft=own)
        assert reply.headers["x-safedraft-guarded"] == guarded
        counted = server.http.get("/metrics").text
    assert f'guarded="{guarded}",refused="true"}} 1.0' in counted


def test_no_reply_is_guarded_where_the_operators_constants_turn_the_guard_off(
    tmp_path: Path,
) -> None:
    pair = replace(pair_of(tmp_path, GUARDED, REFUSAL), config=SSDConfig(alpha_union=0.0))
    with serving(pair, guard_header=True) as server:
        assert ask(server).headers["x-safedraft-guarded"] == "false"


def test_a_reply_whose_client_chose_what_is_penalized_is_not_guarded(tmp_path: Path) -> None:
    with serving(
        pair_of(tmp_path, GUARDED, REFUSAL), guard_header=True, requests_may_set_constants=True
    ) as server:
        for more, guarded in (
            ({"presence_penalty": 0.5, "frequency_penalty": 0.5}, "true"),
            ({"repetition_penalty": 1.0}, "true"),
            ({"repetition_penalty": 1.1}, "false"),
            ({"logit_bias": {}}, "true"),
            ({"logit_bias": {"5": -1}}, "false"),
        ):
            assert ask(server, **more).headers["x-safedraft-guarded"] == guarded
        last = server.service.pair.vocabulary
        refused = ask(server, logit_bias={str(last): 1})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logit_bias")
        token = server.service.pair.target.tokenizer.encode("A", add_special_tokens=False)[0]
        forced = ask(server, logit_bias={str(token): 100}, max_tokens=4).json()
        assert forced["choices"][0]["message"]["content"] == "AAAA"


def test_penalties_are_those_of_the_request() -> None:
    asked = {"presence_penalty": 0.5, "frequency_penalty": -1, "repetition_penalty": 1.2}
    body = {"model": NAME, "messages": [{"role": "user", "content": "hi"}], **asked, "min_p": 0.1}
    sampling = ChatRequest.model_validate(body).build_sampling(0, Limits(), None)
    assert {name: getattr(sampling, name) for name in asked} == asked
    assert sampling.min_p == 0.1
    biased = ChatRequest.model_validate(body | {"logit_bias": {"7": -2}})
    assert biased.build_sampling(0, Limits(), None).logit_bias == {7: -2}


def test_clients_get_no_header_unless_it_is_switched_on(served: Served) -> None:
    assert not any(name.startswith("x-safedraft") for name in ask(served).headers)


def test_each_reply_is_a_line_of_the_log_without_texts(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="safedraft.access"):
        reply = ask(served).json()
    (line,) = (record.getMessage() for record in caplog.records)
    tokens = reply["usage"]["completion_tokens"]
    assert reply["id"].endswith(line.split()[0].removeprefix("id="))
    for part in (f"model='{NAME}'", f"tokens={tokens}", "seconds=", "union=", "guarded=true"):
        assert part in line
    assert "sorry" not in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("allowed", "granted"),
    [((), None), (("https://a.example",), "https://a.example"), (("*",), "*")],
)
def test_scripts_of_allowed_origins_may_call_the_server(
    tmp_path: Path, allowed: tuple[str, ...], granted: str | None
) -> None:
    headers = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    pair = pair_of(tmp_path, GUARDED, "yes")
    with serving(pair, allowed_origins=allowed, api_key="k") as server:
        preflight = httpx.options(f"{server.url}/v1/chat/completions", headers=headers)
        other = httpx.options(
            f"{server.url}/v1/models", headers=headers | {"Origin": "https://b.example"}
        )
    assert preflight.headers.get("access-control-allow-origin") == granted
    assert (other.headers.get("access-control-allow-origin") is not None) is (granted == "*")


@pytest.mark.parametrize("template", ["opens reasoning", "plain"])
def test_a_refusal_behind_a_reasoning_that_the_template_opened_is_counted(
    tmp_path: Path, template: str
) -> None:
    reply = "a " * (WINDOW + 1) + "</think>\n\n" + REFUSAL
    pair = replace(talking(tmp_path, lambda prompt: reply, TRAITS[template]), spec=GUARDED)
    with serving(pair) as server:
        assert ask(server).is_success
        counted = server.http.get("/metrics").text
    assert 'finish_reason="stop",guarded="true",refused="true"} 1.0' in counted
