"""Tools that a reply may call: how requests describe them, and how calls are written and read.

A call is ``<tool_call>``, a JSON object with the name and the arguments, ``</tool_call>``, as the
chat templates of Hermes and Qwen ask for it. Text that is not such a call stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Discriminator, Field, Tag, field_validator

from safedraft.core.errors import SafeDraftError
from safedraft.pair import Pair
from safedraft.server.neutral import Body
from safedraft.text.grammar import write_json
from safedraft.text.messages import is_valid_unicode
from safedraft.text.reasoning import Thinking, markers_of
from safedraft.text.stop import settled_length
from safedraft.text.template import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPENING, CLOSING = "<tool_call>", "</tool_call>"

_ASKED_FOR = re.compile(rf'{OPENING}\s*{{+\s*"name"')
"""The form of a call as templates show it; some double the braces."""

_NO_PARAMETERS = {"type": "object", "additionalProperties": False}

_MAX_DEPTH = 64
"""Maximum depth at which parameters and arguments may be nested."""


class Function(Body):
    """A function that a reply may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments, of type object; none if left out."""
    strict: bool | None = None
    """Whether the arguments are kept to the schema where the model chooses whether it calls."""

    @field_validator("parameters")
    @classmethod
    def _require_object(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema and schema.get("type", "object") != "object":
            raise ValueError("it must be a JSON schema of type object")
        _require_shallow(schema)
        return schema


class Tool(Body):
    """A tool, which is a function."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """The name of a function."""

    name: str


class NamedTool(Body):
    """The tool that a reply has to call."""

    type: Literal["function"]
    function: FunctionName


_CHOICE = Discriminator(lambda value: "a tool" if isinstance(value, dict) else "a word")
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("a word")]
    | Annotated[NamedTool, Tag("a tool")],
    _CHOICE,
]


class EarlierFunction(Body):
    """The function of an earlier call."""

    name: str
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _require_object(cls, text: str) -> str:
        arguments = _read_json(text or "{}")  # some clients write no arguments like this
        if not isinstance(arguments, dict):
            raise ValueError("it must be the text of a JSON object")
        _require_shallow(arguments)
        return text or "{}"


class EarlierToolCall(Body):
    """A call that the assistant made in an earlier message."""

    id: str
    type: Literal["function"]
    function: EarlierFunction
    index: int | None = None
    """The place in the list, which clients take over from a stream; it changes nothing."""

    def to_message(self) -> dict[str, Any]:
        """The call in the form that chat templates take."""
        called = self.function
        function = {"name": called.name, "arguments": _read_json(called.arguments)}
        return {"type": "function", "function": function}


class Call(NamedTuple):
    """A call of a function, as a reply wrote it."""

    name: str
    arguments: str
    """A JSON object."""


def require_tools(pair: Pair) -> None:
    """Check that both chat templates show tools and ask for calls in the form that is read here.

    Raises:
        SafeDraftError: one of them does not.
    """
    for model in (pair.target, pair.draft):
        if model.tokenizer:
            _require_tools(model.tokenizer)


def _require_tools(tokenizer: PreTrainedTokenizerBase) -> None:
    question = [{"role": "user", "content": "Hello"}]
    tool = {"type": "function", "function": {"name": "f", "parameters": _NO_PARAMETERS}}
    shown = render(tokenizer, question, tools=[tool], begin_reply=True)
    name = PurePath(tokenizer.name_or_path).name  # clients need no path of the operator's
    if shown == render(tokenizer, question, begin_reply=True):
        raise SafeDraftError(f"the chat template of {name} has no tools: leave them out")
    if not _ASKED_FOR.search(shown):
        raise SafeDraftError(
            f"the chat template of {name} asks for calls in another form than JSON between "
            f"{OPENING} and {CLOSING}, the only one that is read here"
        )


def marks_calls(pair: Pair) -> bool:
    """Whether the markers of a call are tokens of the target's vocabulary."""
    tokenizer = pair.target.tokenizer
    return tokenizer is not None and OPENING in tokenizer.get_added_vocab()


def write_grammar(
    functions: Sequence[Function],
    *,
    several: bool,
    otherwise: Mapping[str, Any] | Literal["text"] | None,
    marked: bool,
) -> str:
    """Write the grammar of a reply that calls functions, in llguidance's dialect of Lark.

    Args:
        functions: the functions that may be called.
        several: whether there may be more than one call.
        otherwise: the alternative to calls: JSON under a schema, or any text, which may also
            stand before the calls; None if the reply must contain a call.
        marked: whether the markers of a call are tokens of their own.
    """
    opening, closing = (OPENING, CLOSING) if marked else (f'"{OPENING}"', f'"{CLOSING}"')
    more = ' ("\\n" call)*' if several else ""
    bodies = [
        _dump(f'{{"name": "{function.name}", "arguments": ')
        + f" %json {_dump(write_json(_schema_of(function)))}"
        for function in functions
    ]
    lines = [
        f"call: {opening} body",
        f'body: "\\n" ({" | ".join(bodies)}) "}}\\n" {closing}',
    ]
    if otherwise is None:
        return "\n".join([f"start: call{more}", *lines])
    if otherwise == "text":
        begun = f"begun: TEXT {opening}" if marked else f"begun[lazy]: /(.|\\n)*{OPENING}/"
        text = [f"start: TEXT | begun body{more}", "TEXT: /(.|\\n)*/", begun]
        return "\n".join([*text, *lines])
    answer = f"%json {_dump(write_json(otherwise))}"
    return "\n".join([f"start: answer | call{more}", f"answer: {answer}", *lines])


@dataclass(frozen=True)
class CallReader:
    """Reads the calls in a reply."""

    names: Sequence[str]
    """Functions that may be called."""
    after: str = ""
    """The marker that ends the reasoning, before which nothing is a call; empty without one."""
    begun: str = ""
    """The marker that begins the reasoning, where a reply may have none; else empty."""

    def read(self, text: str, *, ended: bool) -> tuple[str, list[Call]]:
        """Read the calls in a reply, or in its beginning.

        Args:
            text: the reply.
            ended: whether nothing follows.

        Returns:
            The text outside the calls, and the calls; of the beginning of a reply, only the text
            that its continuation cannot change.
        """
        reasons = self.begun.startswith(text.lstrip()[: len(self.begun)])
        if reasons and self.after not in text:
            return text, []
        calls, at = list[Call](), text.find(self.after) + len(self.after) if reasons else 0
        content = text[:at]
        while (start := text.find(OPENING, at)) >= 0:
            before, body = text[at:start], start + len(OPENING)
            found = self._read_call(text, body)
            if isinstance(found, tuple):
                call, at = found
                content, calls = content + before.rstrip(), [*calls, call]
            elif found == "unfinished" and not ended:
                return content + before.rstrip(), calls
            else:
                content, at = content + text[at:body], body
        rest = text[at:]
        if not ended:
            rest = rest[: settled_length(rest, [OPENING])].rstrip()
        return content + (rest.rstrip() if calls else rest), calls

    def _read_call(self, text: str, start: int) -> tuple[Call, int] | Literal["unfinished", "none"]:
        """Read the call whose JSON begins at ``start``, and where the text after it begins."""
        try:
            value, end = _DECODER.raw_decode(text, _skip_space(text, start))
            match value:
                case {"name": str(name), "arguments": dict(arguments)} if name in self.names:
                    call = Call(name, _dump(arguments))
                case _:
                    return "none"
            if not is_valid_unicode(call.arguments):
                return "none"
        except json.JSONDecodeError as error:
            in_string = error.msg.startswith("Unterminated string")
            return "unfinished" if in_string or CLOSING not in text[error.pos :] else "none"
        except (ValueError, RecursionError):
            return "none"
        end = _skip_space(text, end)
        if text.startswith(CLOSING, end):
            return call, end + len(CLOSING)
        return "unfinished" if CLOSING.startswith(text[end:]) else "none"


def make_reader(
    pair: Pair, names: Sequence[str], variables: Mapping[str, Any] | None
) -> CallReader | None:
    """Make the reader of the calls in the replies to a request.

    Args:
        pair: the pair that writes the replies.
        names: functions that may be called; without any, there is nothing to read.
        variables: variables of the chat template that the request sets.
    """
    if not names:
        return None
    tokenizer = pair.target.tokenizer
    thinks = pair.thinking(variables) is not Thinking.OFF
    markers = markers_of(tokenizer) if tokenizer and thinks else None
    if not (tokenizer and markers):
        return CallReader(names)
    optional = pair.thinking(variables) is Thinking.BY_MODEL
    return CallReader(names, markers.closing, markers.opening if optional else "")


def _schema_of(function: Function) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object."""
    return {**(function.parameters or _NO_PARAMETERS), "type": "object"}


def _require_shallow(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        parts = [part.values() if isinstance(part, dict) else part for part in level]
        level = [item for part in parts for item in part if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _dump(value: Any) -> str:
    """Write JSON, with characters as they are."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _read_json(text: str) -> Any:
    """The value of a JSON text; None if it is not one."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
