"""The routes: a request becomes jobs of the scheduler, and their tokens become the response."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    StreamingResponse,
)
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from safedraft.pair import Pair
from safedraft.server import gate, wire
from safedraft.server.bodies import JSONRoute
from safedraft.server.docs_page import describe_api
from safedraft.server.errors import APIError, convert_http_exception, convert_validation_error
from safedraft.server.playground import Playground
from safedraft.server.replies import ResponseBuilder, collect_response, stream_events
from safedraft.server.requests import (
    ChatRequest,
    CompletionRequest,
    SamplingRequest,
    TokenizeRequest,
)
from safedraft.server.scheduler import Job
from safedraft.server.service import Service
from safedraft.server.settings import ServerSettings

T = TypeVar("T")

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": wire.ErrorBody} for status in (400, 401, 404, 408, 413, 429, 500, 503, 504)
}

_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "data": {
            "type": "string",
            "description": "A chunk or an error object, as JSON; the last event is [DONE].",
        }
    },
}


def create_app(pair: Pair, settings: ServerSettings) -> FastAPI:
    """Build the ASGI application that serves a loaded pair; ``app.state.service`` decodes."""
    service = Service(pair, settings)
    app = FastAPI(
        title="SafeDraft",
        description="Speculative Safety-Aware Decoding with the OpenAI API.",
        lifespan=_lifespan,
        docs_url=None,  # these pages load scripts from other servers
        redoc_url=None,
    )
    app.router.route_class = JSONRoute
    app.state.service = service
    _add_routes(app, service)
    if settings.playground:
        app.mount(gate.PAGE, Playground())
    app.add_exception_handler(APIError, _respond_with_error)
    app.add_exception_handler(HTTPException, _respond_with_error)
    app.add_exception_handler(RequestValidationError, _respond_with_error)
    # The last one added is called first.
    app.add_middleware(gate.LimitBody, limits=settings.limits)
    if settings.api_key:
        app.add_middleware(gate.RequireKey, key=settings.api_key.get_secret_value())
    else:
        app.add_middleware(gate.RequireLocalName)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    app.add_middleware(gate.CatchExceptions)
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
    # Time within which a stream must be read: that of its replies, and as long as a body may take.
    stream_seconds = settings.limits.request_seconds + settings.limits.body_seconds
    model = wire.Model(
        id=settings.name,
        created=int(time.time()),
        safedraft=service.describe() if settings.allow_telemetry else None,
    )

    @app.post("/v1/chat/completions", responses=_document(wire.ChatCompletion), response_model=None)
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        builder, jobs = await service.submit_chat(body)
        headers = _guard_header(settings, builder)
        return await _respond(request, body, builder, jobs, stream_seconds, headers)

    @app.post("/v1/completions", responses=_document(wire.Completion), response_model=None)
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Continue raw texts, without a chat template."""
        builder, jobs = await service.submit_completion(body)
        headers = _guard_header(settings, builder)
        return await _respond(request, body, builder, jobs, stream_seconds, headers)

    @app.get("/v1/models", responses=_ERRORS)
    async def list_models() -> wire.ModelList:
        """List the only model that is served."""
        return wire.ModelList(data=[model])

    @app.get("/v1/models/{name:path}", responses=_ERRORS)
    async def get_model(name: str) -> wire.Model:
        """Describe the model of that name."""
        service.require_model(name)
        return model

    @app.post("/tokenize", responses=_ERRORS)
    async def tokenize(body: TokenizeRequest) -> wire.TokenIds:
        """Encode a conversation or a text."""
        prompts = await service.tokenize(body)
        return wire.TokenIds(
            tokens=prompts.target,
            count=len(prompts.target),
            draft_count=len(prompts.draft),
            max_model_len=service.pair.context_length,
        )

    @app.get(gate.ROOT, include_in_schema=False)
    async def show_start() -> Response:
        """Lead to the playground, or to the page about the API."""
        return RedirectResponse(gate.PAGE + "/" if settings.playground else gate.DOCS)

    @app.get(gate.DOCS, include_in_schema=False)
    async def show_docs() -> Response:
        """List the routes on a page that loads nothing."""
        return HTMLResponse(describe_api(settings.name, app.openapi()))

    @app.get(gate.HEALTH, responses=_ERRORS)
    async def check_health() -> dict[str, str]:
        """Check whether requests are accepted."""
        service.scheduler.require_running()
        return {"status": "ok"}

    @app.get("/metrics", responses=_ERRORS, response_class=PlainTextResponse)
    async def get_metrics() -> Response:
        """Return the metrics for Prometheus."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _guard_header(settings: ServerSettings, builder: ResponseBuilder) -> dict[str, str]:
    """The header that tells operators whether the replies are guarded, if it is switched on."""
    guarded = {"X-SafeDraft-Guarded": str(builder.guarded).lower()}
    return guarded if settings.guard_header else {}


class _EventStream(StreamingResponse):
    """A stream of events that gives up its jobs when it ends or the client disconnects."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[str],
        jobs: Sequence[Job],
        seconds: float,
        headers: dict[str, str],
    ) -> None:
        own = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=own | headers)
        self._jobs, self._seconds = jobs, seconds

    async def __call__(self, *args: Any) -> None:
        """Send the response."""
        try:
            async with asyncio.timeout(self._seconds):  # for a client that does not read
                await super().__call__(*args)
        finally:
            _give_up(self._jobs)


async def _respond(
    request: Request,
    body: SamplingRequest,
    builder: ResponseBuilder,
    jobs: Sequence[Job],
    stream_seconds: float,
    headers: dict[str, str],
) -> Response:
    if body.stream:
        events = stream_events(builder, jobs, body.wants_usage_chunk)
        return _EventStream(events, jobs, stream_seconds, headers)
    try:
        whole = await _cancel_on_disconnect(request, collect_response(builder, jobs))
        return JSONResponse(whole, headers=headers)
    finally:
        _give_up(jobs)


def _give_up(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.give_up()


async def _cancel_on_disconnect(request: Request, work: Awaitable[T]) -> T:
    """Wait for ``work`` and return its result; cancel it if the client disconnects.

    Raises:
        APIError: the client disconnected; nobody reads the error, but the metrics count it.
    """
    result = asyncio.ensure_future(work)
    disconnect = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait((result, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if result.done():
            return result.result()
        raise APIError(499, "client_left", "The client disconnected.")
    finally:
        result.cancel()
        disconnect.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _respond_with_error(request: Request, error: Exception) -> Response:
    match error:
        case RequestValidationError():
            return convert_validation_error(error).build_response()
        case HTTPException():
            return convert_http_exception(error).build_response()
        case APIError():
            return error.build_response()
    raise error


def _document(model: type[wire.WireModel]) -> dict[int | str, dict[str, Any]]:
    """Describe the responses of a route that sends ``model``, or events, for OpenAPI."""
    stream = {_EventStream.media_type: {"itemSchema": _EVENT}}
    return {200: {"model": model, "content": stream}, 403: {"model": wire.ErrorBody}, **_ERRORS}
