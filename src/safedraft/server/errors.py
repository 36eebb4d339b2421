"""OpenAI's error objects, for everything that can go wrong with a request."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from safedraft.core.errors import DecodingError, PromptTooLongError, SafeDraftError, explain
from safedraft.server.neutral import UNSUPPORTED
from safedraft.server.wire import ErrorBody, ErrorDetail

log = logging.getLogger("safedraft.server")

T = TypeVar("T")

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

_HTTP_ERRORS = {
    400: ("invalid_json", "The body cannot be read as JSON."),
    404: ("not_found", "This address does not exist. Conversations go to /v1/chat/completions."),
    405: ("method_not_allowed", "This address does not support this HTTP method."),
    413: ("body_too_large", "The body is too large."),
    408: ("body_too_slow", "The body did not arrive in time."),
}


_INSTEAD = {
    "functions": "It is deprecated: send the functions as tools",
    "function_call": "It is deprecated: use tools and tool_choice",
    "response_format": "It is of type text, json_object or json_schema with a schema, in "
    "/v1/chat/completions",
    "reasoning_effort": "The models here have no levels of reasoning, and 'none' only if they do "
    "not think: see whether the chat template has a variable for it (chat_template_kwargs)",
    "verbosity": "The models here have no levels of it, and 'medium' asks for none: ask for a "
    "short or a long answer in a message",
}
"""Why a parameter is refused and what to do instead, where leaving it out is not all."""

_WORDS = {
    ("string_type", "content"): "only text is read, as a string or as parts of type text",
    ("string_type", "prompt"): "only text is read: token ids could hold control tokens",
    **dict.fromkeys(
        (("list_type", "stop"), ("list_type", "prompt")), "it must be a string or a list of strings"
    ),
    ("none_required", "refusal"): "only a message of the assistant without a content has one",
}
"""Messages about a value, by Pydantic's type of error and the name of the parameter, where the
message for the type alone says too little."""


class APIError(Exception):
    """An error that is sent to the client.

    Args:
        status: HTTP status; in a stream, which has already begun, the error is its last event.
        code: identifier for programs.
        message: whole sentences for people.
        param: name of the request's parameter that is wrong, if it is one.
        retry_after: number of seconds after which the client may try again.
    """

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
    def body(self) -> ErrorBody:
        """The error object."""
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        detail = ErrorDetail(
            message=_escape_surrogates(self.message),
            type=_TYPES.get(self.status, default),
            param=None if self.param is None else _escape_surrogates(self.param),
            code=self.code,
        )
        return ErrorBody(error=detail)

    def build_response(self) -> JSONResponse:
        """Build the HTTP response."""
        return JSONResponse(self.body.to_json(), self.status, self.headers)


def convert_validation_error(error: RequestValidationError) -> APIError:
    """Describe the first problem of a body, under the name of the parameter."""
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        reason = problem["ctx"]["error"]
        return APIError(400, "invalid_json", f"The body is not valid JSON: {reason}.")
    location = [part for part in problem["loc"] if part != "body"]
    name = _format_location(location)
    if not location:
        message = "The body must be a JSON object, sent with Content-Type: application/json."
        return APIError(400, "invalid_body", message)
    if problem["type"] == "extra_forbidden":
        message = f"This server does not know the parameter {name}. Leave it out."
        return APIError(400, "unknown_parameter", message, name)
    if location[0] in UNSUPPORTED:
        instead = _INSTEAD.get(str(location[0]), "Leave the parameter out")
        message = f"SSD does not support this value of {location[0]}. {instead}."
        return APIError(400, "unsupported_parameter", message, str(location[0]))
    if problem["type"] == "missing":
        return APIError(400, "missing_parameter", f"The parameter {name} is missing.", name)
    return invalid_value(name, describe(problem))


def describe(problem: Mapping[str, Any]) -> str:
    """Say what is wrong with a value, from Pydantic's description, in the server's own words."""
    names = [str(part) for part in problem["loc"] if not isinstance(part, int)]
    if names and (words := _WORDS.get((problem["type"], names[-1]))):
        return words
    words = explain(problem)
    return f"it {words}" if words.startswith("must ") else words


def convert_http_exception(error: HTTPException) -> APIError:
    """Describe a request that the framework or a size limit rejected."""
    code, message = _HTTP_ERRORS.get(error.status_code, ("invalid_request", str(error.detail)))
    api_error = APIError(error.status_code, code, message)
    api_error.headers.update(error.headers or {})
    return api_error


def invalid_value(name: str, problem: str) -> APIError:
    """Build the error for a parameter whose value is refused."""
    return APIError(400, "invalid_value", f"Invalid value of {name}: {problem}.", name)


def convert_errors(
    work: Callable[[], T], name: str, find_name: Callable[[str | None], str | None] = lambda _: None
) -> T:
    """Call ``work``; an error that the client can fix becomes a 400 for a parameter.

    Args:
        work: the function to call.
        name: the parameter, if the error does not name the one that it refuses.
        find_name: returns the parameter of the request for a refused parameter of the library.
    """
    try:
        return work()
    except PromptTooLongError as error:
        raise APIError(400, "context_length_exceeded", str(error), name) from error
    except SafeDraftError as error:
        problem = str(error).removeprefix("structured_outputs: ")
        raise invalid_value(find_name(error.refused) or name, problem) from error


def log_unexpected(error: BaseException) -> None:
    """Log the type and the place of an error, but not its message, which may quote a prompt."""
    if isinstance(error, DecodingError):
        kind, place = error.kind, error.place
    else:
        kind = type(error).__name__
        place = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    log.error("%s at\n%s", kind, place)


def _format_location(location: list[Any]) -> str:
    """Format as ``messages[0].content``, without the names of a union's branches."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif str(part).isidentifier() or not text:
            text += f".{part}" if text else str(part)
    return text


def _escape_surrogates(text: str) -> str:
    """Escape what UTF-8 cannot encode: JSON from a client may hold lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()
