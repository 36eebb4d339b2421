"""Errors that a user can fix: the message is one line that says how."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class SafeDraftError(ValueError):
    """An error that a user can fix: an invalid value, models that do not fit, a missing file.

    The message is a single line that names the problem and what to do about it. The command line
    prints it after ``error:`` and exits with 2.

    Args:
        message: the line.
        refused: name of the parameter that is refused, if the error is about a parameter.
    """

    def __init__(self, *message: object, refused: str | None = None) -> None:
        super().__init__(*message)
        self.refused = refused


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none.

    A line that ends in a colon says nothing yet: the line after it is included.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return (lines or [type(error).__name__])[0]


_A_LIST = "must be a list"
_AN_OBJECT = "must be an object with named fields"
_A_NUMBER = "must be a number"
_A_WHOLE_NUMBER = "must be a whole number"
_TRUE_OR_FALSE = "must be true or false"
_TEXT = "must be a string"

_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "there is nothing of this name",
    "none_required": "must be left out",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "union_tag_invalid": "must have one of the types {expected_tags}",
    "union_tag_not_found": "must have a type",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "finite_number": "must be a finite number",
    "float_type": _A_NUMBER,
    "float_parsing": _A_NUMBER,
    "int_type": _A_WHOLE_NUMBER,
    "int_parsing": _A_WHOLE_NUMBER,
    "int_from_float": _A_WHOLE_NUMBER,
    "int_parsing_size": "must be a smaller number",
    "bool_type": _TRUE_OR_FALSE,
    "bool_parsing": _TRUE_OR_FALSE,
    "string_type": _TEXT,
    "string_unicode": "must be valid Unicode",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "string_too_short": "must have {min_length} or more characters",
    "string_too_long": "must have {max_length} or fewer characters",
    "too_short": "must have {min_length} or more items",
    "too_long": "must have {max_length} or fewer items",
    "list_type": _A_LIST,
    "tuple_type": _A_LIST,
    "set_type": _A_LIST,
    "frozen_set_type": _A_LIST,
    "iterable_type": _A_LIST,
    "dict_type": _AN_OBJECT,
    "mapping_type": _AN_OBJECT,
    "model_type": _AN_OBJECT,
    "model_attributes_type": _AN_OBJECT,
    "dataclass_type": _AN_OBJECT,
    "path_type": "must be a path",  # Pydantic's own, beside the core's types
    "json_invalid": "is not valid JSON: {error}",
    "json_type": "must be JSON in a string",
    "frozen_instance": "cannot be changed",
    "frozen_field": "cannot be changed",
}
"""Messages about a value, by Pydantic's type of error; the fields are those of its context."""

_NAMELESS = frozenset({"missing", "extra_forbidden"})
"""Types of errors whose value says nothing about them."""

_SHOWN = 80
"""Number of characters of a refused value that a message shows."""


def explain(problem: Mapping[str, Any]) -> str:
    """Say what is wrong with a value, such as ``must be at least 0``.

    Args:
        problem: one of the ``errors()`` of the ``ValidationError`` of Pydantic or of FastAPI.
    """
    kind, context = problem["type"], problem.get("ctx") or {}
    if kind in ("value_error", "assertion_error"):  # a validator's own words
        return str(context["error"])
    if context.get("max_length") == 0:
        return "must be empty"
    if context.get("min_length") == 1:
        return "must not be empty"
    if kind in _WORDS:
        return _WORDS[kind].format_map({name: _plain(bound) for name, bound in context.items()})
    message = str(problem["msg"]).replace("Input should", "must")
    return message[:1].lower() + message[1:]


def problems(error: ValidationError, *, whole: str = "", shown: bool = False) -> list[str]:
    """List what Pydantic refused, each after its field, or after ``whole`` if it concerns no field.

    With ``shown`` the refused values are included.
    """
    lines = []
    for found in error.errors():
        where = ".".join(str(part) for part in found["loc"]) or whole
        wrong = explain(found)
        if shown and found["type"] not in _NAMELESS | {"value_error", "assertion_error"}:
            wrong += f", not {show_value(found['input'])}"
        lines.append(f"{where}: {wrong}" if where else wrong)
    return lines


def _plain(bound: Any) -> Any:
    """Write 1.0 as 1: Pydantic makes a number of a field's type of each bound."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def show_value(value: object) -> str:
    """Show a refused value in one line, however long it is."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


@contextmanager
def refuse_invalid(where: str = "", *, whole: str = "", shown: bool = False) -> Iterator[None]:
    """Turn what Pydantic refuses in this block into one line, with ``where`` before it.

    Raises:
        SafeDraftError: the first of the ``problems``.
    """
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        raise SafeDraftError(where + problems(error, whole=whole, shown=shown)[0]) from error


class UnguardedWarning(UserWarning):
    """Replies are no safer than the target's own; the message says why and what to do."""


class IncompatiblePairError(SafeDraftError):
    """The two models cannot decode together."""


class BrokenModelError(SafeDraftError):
    """A model failed, or gave logits that are not numbers; nothing is decoded without both."""


class DecodingError(BrokenModelError):
    """A pass of the models failed, or a rule did.

    ``kind`` is the name of the class of the error that ended it, ``place`` the lines of code that
    the error came through, without its message, which may quote a prompt.
    """

    kind = ""
    place = ""


def describe_failure(what: str, error: Exception) -> DecodingError:
    """Describe why a step of decoding failed.

    The traceback is kept as text: the traceback itself would keep the memory of the pass.
    """
    kind = type(error).__name__
    said = first_line(error)
    reason = said if isinstance(error, SafeDraftError) else f"{kind}: {said}"
    failed = DecodingError(f"{what} failed: {reason}")
    failed.kind = kind
    failed.place = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    failed.add_note("".join(traceback.format_exception(error)))
    return failed


class FormError(BrokenModelError):
    """A reply can no longer be kept to the form that its request asks for."""


class PromptTooLongError(SafeDraftError):
    """The prompt leaves no room for a reply.

    ``tokens`` are those of the longer of the two prompts, ``context_length`` those that the pair
    has room for, prompt and reply together.
    """

    def __init__(self, tokens: int, context_length: int) -> None:
        super().__init__(tokens, context_length)
        self.tokens = tokens
        self.context_length = context_length

    def __str__(self) -> str:
        return (
            f"the prompt has {self.tokens} tokens and the pair's context has "
            f"{self.context_length}: shorten it"
        )
