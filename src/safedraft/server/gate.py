"""What stands before every route: the API key, and what a body may be.

Plain ASGI, so that nothing is read before it is allowed and clients that leave are still noticed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from prometheus_client import Counter
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from safedraft.server.errors import APIError, log_unexpected
from safedraft.server.settings import LOOPBACK, Limits

OPEN = "/health"
"""The one path that asks for no key."""

PAGE = "/playground"
"""Where browsers go, which ask their user for a name and a password: the key is the password."""


class Shield:
    """Whatever goes wrong within becomes a 500 that says nothing of it; the log says where."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if scope["type"] != "http":
                raise  # start-up and shutdown are the operator's to see
            log_unexpected(error)
            if begun:
                raise APIError(500, "internal_error", "the response broke off") from None
            broken = APIError(500, "internal_error", "the server failed; its log says where")
            await broken.response()(scope, receive, send)


class CountRequests:
    """Counts every answer by its route and status."""

    def __init__(self, app: ASGIApp, counter: Counter) -> None:
        self._app, self._counter = app, counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Only paths that there are: anybody can make up others without end.
                route = getattr(scope.get("route"), "path", "other")
                self._counter.labels(route, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)


class RequireKey:
    """Only those who know the API key get past; it is compared in constant time."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "lifespan" and scope["path"] != OPEN and not self._knows(scope):
            error = APIError(
                401, "invalid_api_key", "give the API key as 'Authorization: Bearer …'"
            )
            if scope["path"].startswith(PAGE):
                error.headers["WWW-Authenticate"] = 'Basic realm="SafeDraft", charset="UTF-8"'
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        kind, _, value = _header(scope["headers"], b"authorization").partition(b" ")
        given = value.strip() if kind.lower() == b"bearer" else _password(kind, value)
        return hmac.compare_digest(given, self._key)


class RequireLocalName:
    """Only requests to this machine's own names get past.

    A page on the internet can give its own name this machine's address, and browsers then send its
    requests here as if they were the user's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "lifespan" and self._name(scope) not in LOOPBACK:
            message = "without an API key only this machine's own names are answered to"
            error = APIError(400, "invalid_host", message)
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _name(self, scope: Scope) -> str | None:
        host = _header(scope["headers"], b"host").decode("latin-1")
        try:
            return urlsplit(f"//{host}").hostname
        except ValueError:
            return None


class LimitBody:
    """A body that is too large or too slow is refused, so that nobody holds a place for nothing."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._bytes, self._seconds = app, limits.body_bytes, limits.body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        deadline = asyncio.get_running_loop().time() + self._seconds
        size, arrived = 0, scope["type"] != "http"

        async def limited() -> Message:
            nonlocal size, arrived
            if arrived:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408) from None
            size += len(message.get("body", b""))
            if size > self._bytes:
                raise HTTPException(413)
            arrived = not message.get("more_body", False)
            return message

        await self._app(scope, limited, send)


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    return next((value for key, value in headers if key == name), b"")


def _password(kind: bytes, value: bytes) -> bytes:
    """What a browser sends after it asked its user."""
    if kind.lower() != b"basic":
        return b""
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""
