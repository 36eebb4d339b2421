"""The playground's files and what the API tells the page, without a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import NAME, Served, serving
from talking import talking

from safedraft.core.config import RiskConfig, SSDConfig
from safedraft.models.registry import PairSpec
from safedraft.prompts.phrases import classify
from safedraft.rules import own_rule
from safedraft.server import playground
from safedraft.server.settings import PLAYGROUND, ServerSettings

PAGE = "/playground"
FILES = Path(playground.__file__).parent / "static"
BARE = PairSpec(name="own", target="big", draft="small")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pair = replace(talking(tmp_path_factory.mktemp("pair"), lambda prompt: "Yes."), spec=BARE)
    with serving(pair, limits={"new_tokens": 100, "temperature": 0.5}, **PLAYGROUND) as server:
        yield server


@pytest.mark.parametrize("name", sorted(path.name for path in FILES.iterdir()))
def test_every_file_is_served_under_a_strict_policy(served: Served, name: str) -> None:
    reply = served.http.get(f"{PAGE}/{name}")
    assert reply.content == (FILES / name).read_bytes()
    policy = reply.headers["content-security-policy"].split("; ")
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in str(policy)
    assert reply.headers["x-content-type-options"] == "nosniff"
    unchanged = served.http.get(f"{PAGE}/{name}", headers={"If-None-Match": reply.headers["etag"]})
    assert unchanged.status_code == 304


def test_the_page_is_small_and_names_no_other_server() -> None:
    texts = {path.name: path.read_text("utf-8") for path in FILES.iterdir()}
    assert sum(len(text.encode()) for text in texts.values()) < 60_000
    namespace = "http://www.w3.org/2000/svg"
    for name, text in texts.items():
        assert re.findall(r"(?:https?:)?//\w+\.\w+", text.replace(namespace, "")) == [], name
        assert ".innerHTML" not in text
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=", texts["index.html"])


def test_the_page_is_found_without_its_last_slash(served: Served) -> None:
    reply = httpx.get(served.url + PAGE, follow_redirects=True)
    assert reply.status_code == 200
    assert "SafeDraft playground" in reply.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/other.js", 404),
        ("GET", "/%2e%2e/__init__.py", 404),
        ("GET", "/../__init__.py", 404),
        ("POST", "/index.html", 405),
        ("POST", "/v1/chat/completions", 405),
    ],
)
def test_nothing_else_is_below_the_page(
    served: Served, method: str, path: str, status: int
) -> None:
    reply = served.http.request(method, PAGE + path)
    assert reply.status_code == status
    assert reply.json()["error"]["message"]


def test_the_files_need_no_key_and_the_api_does(tmp_path: Path) -> None:
    with serving(talking(tmp_path, str), api_key="k", **PLAYGROUND) as server:
        assert server.http.get(f"{PAGE}/").status_code == 200
        for path in ("/v1/models", "/playgrounds", "/docs", "/metrics"):
            assert server.http.get(path).status_code == 401, path


def test_there_is_no_page_unless_it_is_asked_for(tmp_path: Path) -> None:
    with serving(talking(tmp_path, str)) as server:
        assert server.http.get(f"{PAGE}/").status_code == 404


def test_the_page_needs_telemetry() -> None:
    with pytest.raises(ValueError, match="allow_telemetry=True"):
        ServerSettings(name="x", playground=True)


def test_the_model_says_what_may_be_asked_of_it(served: Served) -> None:
    (model,) = served.http.get("/v1/models").json()["data"]
    assert served.http.get(f"/v1/models/{NAME}").json() == model
    described = model["safedraft"]
    assert (described["target"], described["draft"], described["thinks"]) == (
        "target",
        "draft",
        False,
    )
    assert described["rule"] == "ssd"
    assert "no safety adapter" in described["warnings"][0]
    assert (described["max_new_tokens"], described["max_temperature"]) == (100, 0.5)
    assert described["allow_prefill"] is described["requests_may_set_constants"] is True
    assert described["config"] == SSDConfig().model_dump(mode="json")
    schema = described["config_schema"]["properties"]
    assert schema.keys() == described["config"].keys()
    assert schema["threshold"]["maximum"] == 1
    assert schema["draft_tokens"]["maximum"] == SSDConfig().draft_tokens
    assert all(constant["description"] for constant in schema.values())


@pytest.mark.parametrize("reads_risk", [True, False])
def test_the_page_has_words_for_the_rule_of_every_pair(reads_risk: bool) -> None:
    titles = re.search("const TITLES = {(.*)};", (FILES / "page.js").read_text("utf-8"))
    assert titles
    assert f" {own_rule(reads_risk=reads_risk)}: " in titles[1]


@pytest.mark.parametrize("reads_risk", [True, False])
def test_constants_of_the_risk_are_told_where_it_is_read(tmp_path: Path, reads_risk: bool) -> None:
    pair = replace(talking(tmp_path, str), config=RiskConfig())
    with serving(pair if reads_risk else replace(pair, probe=None), **PLAYGROUND) as server:
        described = server.http.get(f"/v1/models/{NAME}").json()["safedraft"]
    for constants in (described["config"], described["config_schema"]["properties"]):
        assert ("risky_above" in constants) is reads_risk


def test_nothing_of_the_pair_is_told_unless_telemetry_is_allowed(tmp_path: Path) -> None:
    with serving(talking(tmp_path, str), requests_may_set_constants=True) as server:
        assert server.http.get(f"/v1/models/{NAME}").json()["safedraft"] is None


def ask(served: Served, **options: Any) -> httpx.Response:
    body = {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "safedraft": options}
    return served.http.post("/v1/chat/completions", json=body)


def test_a_request_chooses_its_rule(served: Served) -> None:
    alone, ssd = (
        ask(served, telemetry=True, **rule).json()["choices"][0]["safedraft"]
        for rule in ({"rule": "target_only"}, {})
    )
    assert {token["scheme"] for token in alone["tokens"]} == {None}
    assert {token["draft_probability"] for token in alone["tokens"]} == {None}
    assert {token["scheme"] for token in ssd["tokens"]} == {"intersection"}
    assert alone["verdict"] == ssd["verdict"] == classify("Yes.")


def test_a_rule_that_does_not_exist_is_refused(served: Served) -> None:
    error = ask(served, rule="none").json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "safedraft.rule")
    assert "target_only" in error["message"]


def test_telemetry_has_the_bins(tmp_path: Path) -> None:
    with serving(talking(tmp_path, lambda prompt: "x" * 15), **PLAYGROUND) as server:
        described = ask(server, telemetry=True).json()["choices"][0]["safedraft"]
    ratios = [token["match_ratio"] for token in described["tokens"]]
    assert ratios == [None] * 6 + [1.0] + [None] * 6 + [1.0] + [None] * 2
    assert ratios[6::7] == described["statistics"]["match_ratios"]
    thresholds = [token["threshold"] for token in described["tokens"]]
    assert thresholds[:7] == [0.6] * 7
    assert thresholds[7] < 0.6
