"""What of the playground can be reached, with Gradio's own routes behind it and no browser."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from serving import Served, serving
from talking import talking

from safedraft.models.registry import PairSpec

pytest.importorskip("gradio")

PAGE = "/playground"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pair = talking(tmp_path_factory.mktemp("pair"), lambda prompt: "Yes.")
    with serving(pair, limits={"body_bytes": 10_000}, playground=True) as server:
        yield server


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css?v=1", "/gradio_api/startup-events"])
def test_what_the_page_needs_is_there(served: Served, path: str) -> None:
    reply = httpx.get(f"{served.url}{PAGE}{path}")
    assert reply.status_code == 200
    policy = reply.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "connect-src" not in policy  # nor anything else that opens it again
    assert "frame-ancestors 'none'" in policy


def test_the_page_is_found_without_its_last_slash(served: Served) -> None:
    reply = httpx.get(served.url + PAGE, follow_redirects=True)
    assert reply.status_code == 200
    assert "SafeDraft playground" in reply.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("GET", "/gradio_api/upload_progress?upload_id=1"),
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/openapi.json"),
        ("POST", "/gradio_api/run/answer"),
        ("POST", "/gradio_api/api/predict"),
        ("POST", "/gradio_api/call/answer"),
        ("GET", "/gradio_api/proxy=https://example.org/"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/runs"),
        ("POST", "/gradio_api/run-history/connect"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/cancel"),
        ("GET", "/monitoring"),
        ("POST", "/login"),
        ("POST", "/"),
        ("GET", "/assets/%2e%2e/%2e%2e/%2e%2e/routes.py"),
    ],
)
def test_nothing_else_of_gradio_is_reached(served: Served, method: str, path: str) -> None:
    reply = httpx.request(
        method, f"{served.url}{PAGE}{path}", json={} if method == "POST" else None
    )
    assert reply.status_code in (403, 404)
    assert "import" not in reply.text


def join(served: Served, **settings: Any) -> httpx.Response:
    body = {"data": [], "fn_index": 0, "session_hash": uuid.uuid4().hex}
    return httpx.post(f"{served.url}{PAGE}/gradio_api/queue/join", **({"json": body} | settings))


def test_bodies_are_bounded_as_everywhere(served: Served) -> None:
    assert join(served, json={"data": ["x" * 20_000], "fn_index": 0}).status_code == 413


def test_other_origins_get_no_leave_to_read(served: Served) -> None:
    foreign = {"Origin": "http://localhost:9"}
    for reply in (
        httpx.get(f"{served.url}{PAGE}/config", headers=foreign),
        httpx.options(
            f"{served.url}{PAGE}/gradio_api/queue/join",
            headers=foreign | {"Access-Control-Request-Method": "POST"},
        ),
    ):
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_no_form_of_another_origin_is_taken(served: Served) -> None:
    body = '{"data": [], "fn_index": 0, "session_hash": "a"}'
    reply = join(served, json=None, content=body, headers={"Content-Type": "text/plain"})
    assert reply.status_code in (400, 415, 422)


def test_the_key_is_asked_for_as_browsers_ask(tmp_path: Any) -> None:
    with serving(talking(tmp_path, lambda prompt: "Yes."), api_key="k", playground=True) as served:
        refused = httpx.get(f"{served.url}{PAGE}/")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic ")
        assert join(served).status_code == 401
        known = {"Authorization": "Basic " + base64.b64encode(b"anybody:k").decode()}
        assert httpx.get(f"{served.url}{PAGE}/", headers=known).status_code == 200


def test_there_is_no_page_unless_it_is_asked_for(tmp_path: Any) -> None:
    with serving(talking(tmp_path, lambda prompt: "Yes.")) as served:
        assert httpx.get(f"{served.url}{PAGE}/").status_code == 404


@pytest.mark.parametrize("adapter", [None, "some/adapter"])
def test_the_head_warns_of_a_bare_draft(tmp_path: Path, adapter: str | None) -> None:
    from safedraft.server.playground.layout import _head

    spec = PairSpec(name="own", target="big", draft="small", adapter=adapter)
    pair = replace(talking(tmp_path, str), spec=spec)
    service: Any = SimpleNamespace(pair=pair, settings=SimpleNamespace(name="own"))
    head = _head(service)
    assert ("the draft small has no safety adapter" in head) is (adapter is None)
