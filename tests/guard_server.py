"""A guard behind a local endpoint that says what a function of the messages tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

PAGE = "<html>This is no API.</html>"
"""Said as it stands, not as a completion."""

Says = Callable[[list[dict[str, str]]], str | int]
"""From the messages to the reply, or to the status of an error."""


@dataclass
class GuardServer:
    """Its address, and the requests that it was sent."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    @property
    def conversations(self) -> list[list[str]]:
        """The contents of the messages of each request."""
        return [[turn["content"] for turn in one["messages"]] for one in self.requests]


@contextmanager
def serve_guard(says: Says) -> Iterator[GuardServer]:
    """Serve until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            guard.requests.append(body)
            guard.keys.append(self.headers["Authorization"])
            said = says(body["messages"])
            message = {"role": "assistant", "content": said}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "g"}
            self.send_response(said if isinstance(said, int) else 200)
            page = said == PAGE
            self.send_header("Content-Type", "text/html" if page else "application/json")
            self.end_headers()
            text = PAGE if page else json.dumps({**answer, "choices": [choice]})
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    guard = GuardServer(f"http://127.0.0.1:{listening.server_port}/v1")
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield guard
    finally:
        listening.shutdown()
        listening.server_close()
