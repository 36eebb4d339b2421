"""A hub of our own on this machine: the real client, no network."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "c" * 40
FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(5000),
    "tokenizer.json": b"{}",
    "README.md": b"not wanted",
    "pytorch_model.bin": b"not wanted",
    "modeling.py": b"not wanted",
    "consolidated.safetensors": b"not wanted",
    "onnx/config.json": b"not wanted",
}


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        repository = "/".join(path.removeprefix("/api/models").split("/")[1:3])
        if repository == "someone/gated" and "/resolve/" in path:
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif repository not in ("someone/good", "someone/gated"):
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in path:
            self.answer(200, json.dumps([self.entry(name) for name in FILES]).encode())
        elif "/resolve/" in path:
            name = path.partition(f"/resolve/{COMMIT}/")[2]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"'}
            self.answer(200, FILES[name], headers)
        elif path.endswith("/revision/no"):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            self.answer(200, json.dumps({"id": repository, "sha": COMMIT}).encode())

    do_HEAD = do_GET

    def entry(self, name):
        return {"type": "file", "path": name, "size": len(FILES[name]), "oid": name}

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


CODE = """
import sys
from safedraft.core.errors import SafeDraftError
from safedraft.models.fetch import fetch
try:
    print(fetch(sys.argv[1], lambda *report: print(*report)))
except SafeDraftError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def run(tmp_path):
    """Fetch in a process of its own, because the hub's client reads its settings on import."""

    def run(model, **settings):
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("HF_")
        }
        environment |= {"HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1", **settings}
        return subprocess.run(
            [sys.executable, "-c", CODE, model],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_a_repository_is_downloaded_once_and_found_offline(hub, run):
    online = run("someone/good", HF_ENDPOINT=hub)
    *reports, folder = online.stdout.splitlines()
    assert reports[-1] == "downloading someone/good from the hub 5004 5004"
    names = {path.name for path in Path(folder).iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}
    assert online.stderr == ""
    offline = run("someone/good", HF_HUB_OFFLINE="1")
    assert offline.stdout.splitlines() == [folder]
    unreachable = run("someone/good", HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable.stdout.splitlines() == [folder]


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        ("someone/missing", {}, "the hub has no such repository"),
        ("someone/gated", {}, "access must be granted"),
        ("someone/good@no", {}, "no revision 'no'"),
        ("someone/go--od", {}, "not a name that a repository can have"),
        ("someone/good", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ("someone/good", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "connect, or pass the path"),
    ],
)
def test_why_not_in_one_line(hub, run, model, settings, said):
    result = run(model, **{"HF_ENDPOINT": hub, **settings})
    assert result.returncode == 1
    name = model.partition("@")[0]
    assert result.stderr.startswith(f"error: {name}: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
