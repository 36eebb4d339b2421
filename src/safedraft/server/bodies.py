"""Bodies in JSON, whose objects have each name once: of two values, one would be ignored."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class _Request(Request):
    async def json(self) -> Any:
        """Read the body.

        Raises:
            JSONDecodeError: it is not JSON, or an object has a name twice.
        """
        text = (await self.body()).decode()
        return json.loads(text, object_pairs_hook=partial(_require_unique, text))


def _require_unique(text: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise json.JSONDecodeError(f"an object has the name {name!r} twice", text, 0)
        values[name] = value
    return values


class JSONRoute(APIRoute):
    """A route that refuses a body in which an object has a name twice."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of requests."""
        answer = super().get_route_handler()

        async def read_and_answer(request: Request) -> Response:
            return await answer(_Request(request.scope, request.receive))

        return read_and_answer
