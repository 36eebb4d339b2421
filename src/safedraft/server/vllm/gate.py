"""What stands before every route of vLLM's server, as before those of SafeDraft's own.

vLLM's own key is asked for under ``/v1`` and a few other paths alone; ``/invocations`` generates as
well. vLLM is given the name of a class and makes it.
"""

from __future__ import annotations

import os

from starlette.types import ASGIApp, Receive, Scope, Send

from safedraft.server import gate
from safedraft.server.settings import API_KEY


class RequireKey(gate.RequireKey):
    """Only those who know the key in the environment get past, but to ``/health``."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, os.environ[API_KEY])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; a browser asks whether it may ask (OPTIONS) without a key."""
        within = self._app if scope.get("method") == "OPTIONS" else super().__call__
        await within(scope, receive, send)


def before_all(key: str | None) -> list[str]:
    """The arguments by which vLLM puts what is needed before its routes."""
    guard = RequireKey if key else gate.RequireLocalName
    return ["--middleware", f"{guard.__module__}.{guard.__name__}"]
