"""A server on a port of its own in a thread, with a pair that says what a test tells it to."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import uvicorn

from safedraft.pair import Pair
from safedraft.server.app import create_app
from safedraft.server.run import KEEP_ALIVE, Server
from safedraft.server.service import Service
from safedraft.server.settings import Limits, ServerSettings

NAME = "tiny"


@dataclass
class Served:
    """A running server."""

    url: str
    service: Service
    server: Server
    http: httpx.Client

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=20)

    def stop(self) -> None:
        """As SIGTERM does."""
        self.server.should_exit = True


@contextmanager
def serving(
    pair: Pair, limits: dict[str, Any] | None = None, name: str = NAME, **settings: Any
) -> Iterator[Served]:
    chosen = ServerSettings(name=name, limits=Limits(**(limits or {})), **settings)
    app = create_app(pair, chosen)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=10, timeout_keep_alive=KEEP_ALIVE
    )
    server = Server(config, app, chosen.limits.grace_seconds)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.01)
        port = listening.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=20) as client:
            yield Served(url, app.state.service, server, client)
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive(), "the server did not stop"
