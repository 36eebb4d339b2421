"""Middleware before every route: API key, host name, size and time of the body, unhandled errors.

It is plain ASGI, so that no body is read before it is allowed, and a client's disconnect still
reaches the route.
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

HEALTH = "/health"

PAGE = "/playground"
"""Path of the playground, whose files hold nothing of the server; the page itself asks for the key
and sends it to the API."""

ROOT = "/"
"""Leads to the playground, or to the page about the API."""

DOCS = "/docs"
"""The page about the API. Browsers ask for a name and a password there: the key is the password."""


class CatchExceptions:
    """Turn unhandled exceptions into a generic 500 and log them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        response_started = False

        async def send_and_track(message: Message) -> None:
            nonlocal response_started
            response_started = response_started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_and_track)
        except Exception as error:
            if scope["type"] != "http":
                raise  # the operator has to see errors of startup and shutdown
            log_unexpected(error)
            if response_started:
                raise APIError(500, "internal_error", "The response was cut off.") from None
            failure = APIError(500, "internal_error", "The server failed; its log says where.")
            await failure.build_response()(scope, receive, send)


class CountRequests:
    """Count every response by its route and status."""

    def __init__(self, app: ASGIApp, counter: Counter) -> None:
        self._app, self._counter = app, counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Only existing routes: clients can invent any number of other paths.
                route = getattr(scope.get("route"), "path", "other")
                self._counter.labels(route, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, send_and_count if scope["type"] == "http" else send)


class RequireKey:
    """Reject requests without the API key, which is compared in constant time."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if (
            scope["type"] != "lifespan"
            and not _is_public(scope["path"])
            and not self._has_key(scope)
        ):
            message = "The API key is missing or wrong. Send it as 'Authorization: Bearer <key>'."
            error = APIError(401, "invalid_api_key", message)
            if scope["path"] == DOCS:
                error.headers["WWW-Authenticate"] = 'Basic realm="SafeDraft", charset="UTF-8"'
            await error.build_response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        kind, _, value = _header(scope["headers"], b"authorization").partition(b" ")
        key = value.strip() if kind.lower() == b"bearer" else _decode_password(kind, value)
        return hmac.compare_digest(key, self._key)


class RequireLocalName:
    """Reject requests to any host name that is not this machine's own.

    A website can make its own name resolve to this machine's address; browsers then send the site's
    requests here as if the user had made them (DNS rebinding).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "lifespan" and self._host_name(scope) not in LOOPBACK:
            message = "A server without an API key is reached only as localhost or 127.0.0.1."
            error = APIError(400, "invalid_host", message)
            await error.build_response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _host_name(self, scope: Scope) -> str | None:
        host = _header(scope["headers"], b"host").decode("latin-1")
        try:
            return urlsplit(f"//{host}").hostname
        except ValueError:
            return None


class LimitBody:
    """Reject bodies that are too large or too slow."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._bytes, self._seconds = app, limits.body_bytes, limits.body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        deadline = asyncio.get_running_loop().time() + self._seconds
        size, arrived = 0, scope["type"] != "http"

        async def receive_limited() -> Message:
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

        await self._app(scope, receive_limited, send)


def _is_public(path: str) -> bool:
    """Whether a path needs no API key."""
    return path in (ROOT, HEALTH, PAGE) or path.startswith(f"{PAGE}/")


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    return next((value for key, value in headers if key == name), b"")


def _decode_password(kind: bytes, value: bytes) -> bytes:
    """Return the password of HTTP basic authentication, or nothing if there is none."""
    if kind.lower() != b"basic":
        return b""
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""
