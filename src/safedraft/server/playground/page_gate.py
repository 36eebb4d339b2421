"""Middleware that limits the page's addresses to those that the page itself needs."""

from __future__ import annotations

import asyncio
import re

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from safedraft.server.gate import PAGE

# Gradio has many more routes: uploads, files, a proxy, calls by name, history on a hub.
_NEEDED = {
    "GET": r"/?|/config|/theme\.css|/favicon\.ico|/(assets|static)/.+|"
    r"/gradio_api/(heartbeat/\w+|queue/data|startup-events)",
    "POST": r"/gradio_api/queue/join",
}

_HEADERS = (
    # The browser enforces that the page connects to its server only. Gradio compiles templates of
    # components in the browser, which needs 'unsafe-eval'.
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        b"style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
        b"object-src 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class PageGate:
    """Answers 404 at routes of Gradio that the page does not use."""

    def __init__(self, app: ASGIApp, stopped: asyncio.Event) -> None:
        self._app, self._stopped = app, stopped

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not re.match(rf"{PAGE}(/|$)", scope["path"]):
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        allowed = _NEEDED.get(scope["method"])
        if not allowed or not re.fullmatch(allowed, scope["path"].removeprefix(PAGE)):
            await PlainTextResponse("not found", 404)(scope, receive, send_with_headers)
            return
        # With an origin, Gradio would allow pages of other origins to read its answers.
        headers = [(name, value) for name, value in scope["headers"] if name != b"origin"]
        is_heartbeat = "/heartbeat/" in scope["path"]
        await self._app(
            {**scope, "headers": headers},
            self._until_stopped(receive) if is_heartbeat else receive,
            send_with_headers,
        )

    def _until_stopped(self, receive: Receive) -> Receive:
        """End an open heartbeat when the server stops, which would otherwise wait for it."""

        async def receive_until_stopped() -> Message:
            message, stopped = (
                asyncio.ensure_future(receive()),
                asyncio.ensure_future(self._stopped.wait()),
            )
            try:
                await asyncio.wait((message, stopped), return_when=asyncio.FIRST_COMPLETED)
                return message.result() if message.done() else {"type": "http.disconnect"}
            finally:
                message.cancel()
                stopped.cancel()

        return receive_until_stopped
