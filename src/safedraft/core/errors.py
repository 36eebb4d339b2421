"""The one exception that means "you can fix this": its message is one line that says how."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class SafeDraftError(ValueError):
    """Something a user can mend: a bad value, a pair that does not fit, a file that is not there.

    The message is a single line that names the trouble and what to do about it. The command line
    prints it after ``error:`` and exits with 2.
    """


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def problems(error: ValidationError, *, whole: str = "", shown: bool = False) -> list[str]:
    """What Pydantic found wrong, each with its field, or ``whole`` if it is not of one field.

    With ``shown`` the values are told too.
    """
    told = []
    for found in error.errors():
        where = ".".join(str(part) for part in found["loc"]) or whole
        wrong = f"{found['msg'].lower()}, not {found['input']!r}" if shown else found["msg"]
        told.append(f"{where}: {wrong}")
    return told


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
