"""Run the server in this process with uvicorn; a stop lets running replies finish."""

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
from safedraft.server.access_log import show_access_log
from safedraft.server.app import create_app
from safedraft.server.settings import ServerSettings, require_safe

KEEP_ALIVE = 75
"""Seconds for which an idle connection stays open: longer than proxies keep theirs, usually for 60,
so that none of them sends a request into a connection that is being closed."""


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; with port 0 the system chooses a free port.

    Raises:
        SafeDraftError: the address is not available.
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
    announce: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C, then wait for running replies within the grace period.

    Args:
        pair: the pair that decodes.
        settings: permissions and limits.
        listening: socket returned by ``listen``.
        announce: called with one line that holds the server's address.

    Raises:
        SafeDraftError: see ``require_safe``; or raw text is allowed, and the pair does not support
            it.
    """
    host, port = listening.getsockname()[:2]
    require_safe(host, settings.api_key)
    app = create_app(pair, settings)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    page = f", playground at {address}{gate.PAGE}" if settings.playground else ""
    show_access_log()
    announce(f"{settings.name} is served at {address}/v1{page}; Ctrl-C stops it")
    grace = settings.limits.grace_seconds
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        # The scheduler's grace period, and time to send the last events.
        timeout_graceful_shutdown=math.ceil(grace) + 15,
    )
    Server(config, app, grace).run([listening])


class Server(uvicorn.Server):
    """A uvicorn server that stops the scheduler before it waits for open connections."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, grace_seconds: float) -> None:
        super().__init__(config)
        self._scheduler = app.state.service.scheduler
        self._grace_seconds = grace_seconds

    async def shutdown(self, *args: object, **kwargs: object) -> None:
        """Stop the scheduler, and close all connections."""
        stopping = asyncio.create_task(self._scheduler.stop(self._grace_seconds))
        await super().shutdown(*args, **kwargs)  # type: ignore[arg-type]
        if self.force_exit:  # Ctrl-C was pressed a second time
            stopping.cancel()
        else:
            await stopping
