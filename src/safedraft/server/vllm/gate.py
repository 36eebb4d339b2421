"""Middleware before every route of vLLM's server, as before those of SafeDraft's own.

vLLM requires its own key only under ``/v1`` and a few other paths, and ``/invocations`` generates
as well. vLLM gets the name of a class and instantiates it.
"""

from __future__ import annotations

import os

from starlette.types import ASGIApp, Receive, Scope, Send

from safedraft.server import gate
from safedraft.server.settings import API_KEY


class RequireEnvironmentKey(gate.RequireKey):
    """Requires the key in the environment on every route except ``/health``."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, os.environ[API_KEY])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; a browser's preflight request (OPTIONS) has no key."""
        serve = self._app if scope.get("method") == "OPTIONS" else super().__call__
        await serve(scope, receive, send)


def middleware_arguments(key: str | None) -> list[str]:
    """vLLM's arguments that put the middleware before its routes."""
    guard = RequireEnvironmentKey if key else gate.RequireLocalName
    return ["--middleware", f"{guard.__module__}.{guard.__name__}"]
