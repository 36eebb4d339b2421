"""The routes: what is asked becomes jobs of the scheduler, and their tokens a response."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from safedraft.pair import Pair
from safedraft.server import gate
from safedraft.server.errors import APIError, ErrorBody, invalid, of_http
from safedraft.server.replies import Answer, events, whole
from safedraft.server.requests import ChatRequest, CompletionRequest, Sampled, TokenizeRequest
from safedraft.server.scheduler import Job
from safedraft.server.service import Service
from safedraft.server.settings import ServerSettings

T = TypeVar("T")

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 408, 413, 429, 500, 503, 504)
}

_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "data": {
            "type": "string",
            "description": "A chunk of the reply or an error object, as JSON; [DONE] at the end.",
        }
    },
}


class Tokens(BaseModel):
    """The reply of ``/tokenize``."""

    tokens: list[int]
    """The target's ids."""
    count: int
    draft_count: int
    """Of the draft's own prompt."""
    max_model_len: int
    """The context of the pair's shorter model."""


def create_app(pair: Pair, settings: ServerSettings) -> FastAPI:
    """The server of a loaded pair, as an ASGI application; ``app.state.service`` is its inside."""
    service = Service(pair, settings)
    app = FastAPI(
        title="SafeDraft",
        description="Speculative Safety-Aware Decoding behind the OpenAI API.",
        lifespan=_lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    _add_routes(app, service)
    if settings.playground:
        from safedraft.server.playground.page import mount_playground  # its extra is its own

        mount_playground(app, service)
    app.add_exception_handler(APIError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_error)
    # The last one added stands first.
    app.add_middleware(gate.LimitBody, limits=settings.limits)
    if settings.api_key:
        app.add_middleware(gate.RequireKey, key=settings.api_key.get_secret_value())
    else:
        app.add_middleware(gate.RequireLocalName)
    app.add_middleware(gate.Shield)
    app.add_middleware(gate.CountRequests, counter=service.metrics.requests)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    scheduler = app.state.service.scheduler
    running = asyncio.create_task(scheduler.run())
    yield
    await scheduler.stop(0)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    scheduler.close()


def _add_routes(app: FastAPI, service: Service) -> None:
    settings = service.settings
    # In which a stream has to be read: its reply's time, and as long as a body may take.
    seconds = settings.limits.request_seconds + settings.limits.body_seconds
    model = Model(id=settings.name, object="model", created=int(time.time()), owned_by="safedraft")

    @app.post("/v1/chat/completions", responses=_told(ChatCompletion), response_model=None)
    async def chat_completions(asked: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await _respond(request, asked, *await service.chat(asked), seconds)

    @app.post("/v1/completions", responses=_told(Completion), response_model=None)
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        """Continue raw texts, without a chat template."""
        return await _respond(request, asked, *await service.completion(asked), seconds)

    @app.get("/v1/models", responses=_ERRORS)
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [model.model_dump()]}

    @app.get("/v1/models/{name:path}", responses=_ERRORS)
    async def one_model(name: str) -> dict[str, Any]:
        """The model of that name."""
        service.require_model(name)
        return model.model_dump()

    @app.post("/tokenize", responses=_ERRORS)
    async def tokenize(asked: TokenizeRequest) -> Tokens:
        """Token ids of a conversation or a text."""
        target, draft = await service.tokenize(asked)
        return Tokens(
            tokens=target,
            count=len(target),
            draft_count=len(draft),
            max_model_len=service.pair.context_length,
        )

    @app.get("/health", responses=_ERRORS)
    async def health() -> dict[str, str]:
        """Whether replies are taken."""
        service.scheduler.require_running()
        return {"status": "ok"}

    @app.get("/metrics", responses=_ERRORS, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


class _EventStream(StreamingResponse):
    """A stream of events whose replies end when it does, the client's leaving included."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], jobs: Sequence[Job], seconds: float) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._jobs, self._seconds = jobs, seconds

    async def __call__(self, *args: Any) -> None:
        """Send the response."""
        try:
            async with asyncio.timeout(self._seconds):  # of a reader who does not read
                await super().__call__(*args)
        finally:
            _give_up(self._jobs)


async def _respond(
    request: Request, asked: Sampled, answer: Answer, jobs: Sequence[Job], seconds: float
) -> Response:
    if asked.stream:
        return _EventStream(events(answer, jobs, asked.usage_in_stream), jobs, seconds)
    try:
        return JSONResponse(await _unless_gone(request, whole(answer, jobs)))
    finally:
        _give_up(jobs)


def _give_up(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.give_up()


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What ``work`` gives, unless the client leaves before.

    Raises:
        APIError: it did; nobody reads this, but it is counted.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise APIError(499, "client_left", "the client left")
    finally:
        working.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _answer_error(request: Request, error: Exception) -> Response:
    match error:
        case RequestValidationError():
            return invalid(error).response()
        case HTTPException():
            return of_http(error).response()
        case APIError():
            return error.response()
    raise error


def _told(kind: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """What the document says of a route that answers whole or as a stream of events."""
    stream = {_EventStream.media_type: {"itemSchema": _EVENT}}
    return {200: {"model": kind, "content": stream}, 403: {"model": ErrorBody}, **_ERRORS}
