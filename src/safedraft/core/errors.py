"""Errors that a user can fix: the message is one line that says how."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class SafeDraftError(ValueError):
    """Something that a user can fix: an invalid value, models that do not fit, a missing file.

    The message is a single line that names the problem and what to do about it. The command line
    prints it after ``error:`` and exits with 2.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none.

    A line that ends in a colon says nothing yet: the line after it is included.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return (lines or [type(error).__name__])[0]


def problems(error: ValidationError, *, whole: str = "", shown: bool = False) -> list[str]:
    """List what Pydantic refused, each after its field, or after ``whole`` if it concerns no field.

    With ``shown`` the refused values are included.
    """
    lines = []
    for found in error.errors():
        where = ".".join(str(part) for part in found["loc"]) or whole
        wrong = f"{found['msg'].lower()}, not {found['input']!r}" if shown else found["msg"]
        if found["type"] == "extra_forbidden":
            wrong = "there is nothing of this name"
        elif found["type"] == "value_error":  # our own words, after Pydantic's prefix
            wrong = str(found["ctx"]["error"])
        lines.append(f"{where}: {wrong}" if where else wrong)
    return lines


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
    """A model gave logits that are not numbers; nothing is decoded without both models."""


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
