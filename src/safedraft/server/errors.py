"""What a client is told when something is wrong: OpenAI's error objects."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from safedraft.server.requests import UNSUPPORTED

log = logging.getLogger("safedraft.server")


class ErrorDetail(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every reply that is not a 200."""

    error: ErrorDetail


class APIError(Exception):
    """Becomes an error object, with this HTTP status; in a stream, its last event."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    @property
    def body(self) -> dict[str, Any]:
        """The error object, ready for JSON."""
        detail = ErrorDetail(
            message=_printable(self.message),
            type=_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else _OURS),
            param=None if self.param is None else _printable(self.param),
            code=self.code,
        )
        return ErrorBody(error=detail).model_dump()

    def response(self) -> JSONResponse:
        """The whole HTTP response."""
        return JSONResponse(self.body, self.status, self.headers)


_OURS = "server_error"
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def invalid(error: RequestValidationError) -> APIError:
    """What is wrong with a body, its first trouble, by the name of the parameter."""
    found = error.errors()[0]
    if found["type"] == "json_invalid":
        return APIError(400, "invalid_json", f"the body is not JSON: {found['ctx']['error']}")
    where = [part for part in found["loc"] if part != "body"]
    name = _dotted(where)
    if not where:
        return APIError(400, "invalid_body", "the body has to be a JSON object")
    if found["type"] == "extra_forbidden":
        message = f"{name} is not known to this server: leave it out"
        return APIError(400, "unknown_parameter", message, name)
    if where[0] in UNSUPPORTED:
        message = f"{where[0]} is not supported with SSD: leave it out"
        return APIError(400, "unsupported_parameter", message, str(where[0]))
    if found["type"] == "missing":
        return APIError(400, "missing_parameter", f"{name} is missing", name)
    return APIError(400, "invalid_value", f"{name}: {found['msg']}", name)


def of_http(error: HTTPException) -> APIError:
    """What the framework refused: a route, a method, a body's size or time."""
    code, message = _REFUSED.get(error.status_code, ("invalid_request", str(error.detail)))
    refused = APIError(error.status_code, code, message)
    refused.headers.update(error.headers or {})
    return refused


_REFUSED = {
    400: ("invalid_json", "the body cannot be read as JSON"),
    404: ("not_found", "there is nothing at this address"),
    405: ("method_not_allowed", "this address takes another method"),
    413: ("body_too_large", "the body is too large"),
    408: ("body_too_slow", "the body did not arrive in time"),
}


def log_unexpected(error: BaseException) -> None:
    """Note an error's kind and place; what it says may quote a prompt, and is not noted."""
    place = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s at\n%s", type(error).__name__, place.rstrip())


def _dotted(where: list[Any]) -> str:
    """``messages[0].content``; of a union's branches only what the client wrote is named."""
    text = ""
    for part in where:
        if isinstance(part, int):
            text += f"[{part}]"
        elif str(part).isidentifier() or not text:
            text += f".{part}" if text else str(part)
    return text


def _printable(text: str) -> str:
    """Text that can be sent: a client's own may hold what is no Unicode."""
    return text.encode("utf-8", "backslashreplace").decode()
