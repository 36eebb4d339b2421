"""The server as a process: uvicorn, and a stop that lets replies finish."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from safedraft.core.errors import SafeDraftError
from safedraft.pair import Pair
from safedraft.server import gate
from safedraft.server.app import create_app
from safedraft.server.settings import ServerSettings, require_safe


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; a port of 0 takes a free one.

    Raises:
        SafeDraftError: it cannot be had.
    """
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(kind, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        raise SafeDraftError(
            f"cannot listen at {host}:{port} ({error.strerror}): give another --host or --port"
        ) from error
    return listening


def serve_app(
    pair: Pair,
    settings: ServerSettings,
    listening: socket.socket,
    say: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C, and then finish what can be finished in time.

    Args:
        pair: what decodes.
        settings: what is allowed.
        listening: of ``listen``.
        say: told in a line where the server is.

    Raises:
        SafeDraftError: as ``require_safe``; or the pair is not for raw text, which is allowed.
    """
    host, port = listening.getsockname()[:2]
    require_safe(host, settings.api_key)
    app = create_app(pair, settings)
    place = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    page = f", playground at {place}{gate.PAGE}" if settings.playground else ""
    say(f"{settings.name} is served at {place}/v1{page}; Ctrl-C stops it")
    grace = settings.limits.grace_seconds
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        # The scheduler's grace, and what still has to write its last words.
        timeout_graceful_shutdown=math.ceil(grace) + 15,
    )
    Server(config, app, grace).run([listening])


class Server(uvicorn.Server):
    """uvicorn's, which tells the scheduler of a stop before it waits for open connections."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, grace_seconds: float) -> None:
        super().__init__(config)
        self._scheduler = app.state.service.scheduler
        self._grace_seconds = grace_seconds

    async def shutdown(self, *args: object, **kwargs: object) -> None:
        """As uvicorn's own."""
        stopping = asyncio.create_task(self._scheduler.stop(self._grace_seconds))
        await super().shutdown(*args, **kwargs)  # type: ignore[arg-type]
        if self.force_exit:  # Ctrl-C for the second time
            stopping.cancel()
        else:
            await stopping
