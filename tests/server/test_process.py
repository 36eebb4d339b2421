"""``safedraft serve`` as a process: what it says, how it stops, what it refuses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from safedraft.cli import app
from safedraft.core.errors import SafeDraftError
from safedraft.server.settings import API_KEY

pytestmark = pytest.mark.slow

Folders = tuple[Path, Path]


def models(pair: Folders) -> list[str]:
    return ["--target", str(pair[0]), "--draft", str(pair[1])]


@contextmanager
def process(pair: Folders, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server and its address."""
    command = [sys.executable, "-m", "safedraft", "serve", *models(pair), "--port", "0", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # tiny models: threads only wait
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert running.stderr
        said = ""
        while not (found := re.search(r"served at (http://\S+)/v1", said)):
            line = running.stderr.readline()
            assert line, f"the server ended: {said}"
            said += line
        warned = said.count("warning: the draft ")
        assert warned == ("--no-adapter" not in arguments), said  # before it serves
        yield running, found[1]
    finally:
        running.kill()
        running.wait()


def test_sigterm_under_load_finishes_what_was_asked(tiny_pair: Folders) -> None:
    with process(tiny_pair, "--max", "grace_seconds=60", "--set", "bin_size=5") as (running, url):
        asked = {
            "model": httpx.get(f"{url}/v1/models").json()["data"][0]["id"],
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 120,
        }
        replies: list[Any] = []
        threads = [
            threading.Thread(
                target=lambda: replies.append(
                    httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=60)
                )
            )
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        while sum(map(int, re.findall(r"_replies (\d+)", httpx.get(f"{url}/metrics").text))) < 6:
            pass
        running.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert running.wait(30) in (0, -signal.SIGTERM)
    texts = {reply.json()["choices"][0]["message"]["content"] for reply in replies}
    assert (len(replies), len(texts)) == (6, 1)


def test_prompts_are_in_no_log(tiny_pair: Folders) -> None:
    with process(tiny_pair, "--allow", "completions", "--served-model-name", "m") as (running, url):
        name = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        for text in ("private words", "private words" * 400):
            for more in ({}, {"user": "x"}, {"stream": True}):
                asked = {"model": name, "max_tokens": 3, **more}
                messages = [{"role": "user", "content": text}]
                httpx.post(f"{url}/v1/chat/completions", json=asked | {"messages": messages})
                httpx.post(f"{url}/v1/completions", json=asked | {"prompt": text})
        running.send_signal(signal.SIGTERM)
        assert running.stderr
        log = running.stderr.read()
        assert "private" not in log
        assert len(re.findall(r"id=\w+ model='m' tokens=\d", log)) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], f"set {API_KEY}"),
        (["--max", "speed=1"], "--max speed=1: write NAME=VALUE with one of body_bytes"),
        (["--max-num-seqs", "4"], "--max-num-seqs: there is no such option"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_is_loaded(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(API_KEY, raising=False)
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert isinstance(result.exception, SafeDraftError)
    assert message in str(result.exception)


def test_an_address_that_is_taken_is_one_line(tiny_pair: Folders) -> None:
    with process(tiny_pair) as (_, url):
        port = url.rpartition(":")[2]
        again = subprocess.run(
            [sys.executable, "-m", "safedraft", "serve", *models(tiny_pair), "--port", port],
            capture_output=True,
            text=True,
            check=False,
        )
    assert again.returncode == 2
    assert "give another --host or --port" in again.stderr.replace("\n", " ")
