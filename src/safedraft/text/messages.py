"""Messages of a conversation: the valid forms, and the speaker of the last turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from safedraft.core.errors import SafeDraftError

Message = Mapping[str, Any]
"""``{"role": "system" | "user" | "assistant" | "tool", "content": text}``.

An assistant's message may also have a ``reasoning``. In the last one, which the reply continues,
that is the beginning of the reasoning, or all of it if there is a content. An earlier message may
have ``tool_calls``, as chat templates take them: their results follow in messages of the role
``tool``.
"""

_ROLES = ("system", "user", "assistant", "tool")

_TEXT_PARTS = ("text", "refusal")
"""Types of the parts of a content that are text, which stands under the key of that name."""

_INERT_KEYS = frozenset(
    {"annotations", "cache_control", "citations", "id", "index", "prompt_cache_breakpoint"}
)
"""Keys of such a part that clients send along and that change nothing in its text."""

_REASONING = ("reasoning", "reasoning_content")
"""Names of an assistant's reasoning in the interfaces of servers; here it has the first one."""


def conversation(
    prompt: str | Sequence[Mapping[str, Any]],
    prefill: str = "",
    system: str | None = None,
    reasoning: str | None = None,
) -> list[Message]:
    """Return the checked messages of a request.

    Args:
        prompt: the text of one user message, or all messages; a content may be parts of text, and
            the role ``developer`` means ``system``, as in OpenAI's API.
        prefill: the beginning of the reply; it becomes an assistant message at the end.
        system: the system prompt, which comes first.
        reasoning: the beginning of the reasoning, or all of it if there is a prefill too.

    Raises:
        SafeDraftError: no user message has text, a message has no valid role or content, or there
            is a prefill after messages that already end in an assistant turn.
    """
    given = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(given, Sequence):
        raise SafeDraftError(
            f"a prompt is a text or a list of messages, not {type(prompt).__name__}; token ids go "
            "to stream_ids or generate_many_ids"
        )
    messages: list[Message] = [_normalize(message) for message in given]
    if system is not None:
        if messages and messages[0].get("role") == "system":
            raise SafeDraftError("the messages begin with a system prompt: leave out system")
        messages.insert(0, {"role": "system", "content": system})
    begun: Message = {"role": "assistant", "content": prefill}
    if reasoning is not None:
        begun = {**begun, "reasoning": reasoning}
    final = [begun] if prefill or reasoning is not None else []
    for message in [*messages, *final]:
        _require_valid(message)
    if not any(message["role"] == "user" and message["content"].strip() for message in messages):
        raise SafeDraftError("the prompt is empty: give a message to answer")
    if final and turn_begun(messages):
        raise SafeDraftError("the messages end in an assistant turn already: leave out the prefill")
    return messages + final


def turn_begun(messages: Sequence[Message]) -> bool:
    """Return whether the last message is an assistant turn, which the reply continues."""
    return bool(messages[-1]["role"] == "assistant")


def begun_text(messages: Sequence[Message]) -> str:
    """The beginning of the reply: the reasoning and the content of a last assistant message."""
    last = messages[-1]
    return last.get("reasoning", "") + last["content"] if turn_begun(messages) else ""


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """Return ``messages`` with ``system`` in front of the conversation's own system prompt."""
    if not system:
        return list(messages)
    if messages and messages[0]["role"] == "system":
        joined = f"{system}\n\n{messages[0]['content']}"
        return [{"role": "system", "content": joined}, *messages[1:]]
    return [{"role": "system", "content": system}, *messages]


def _normalize(message: Mapping[str, Any]) -> Message:
    """Join a content that is a list of text parts; unify the names of role and reasoning."""
    if not isinstance(message, Mapping):
        return message
    message = dict(message)
    if message.get("role") == "developer":  # as newer models of OpenAI have it
        message["role"] = "system"
    given = [message.pop(name, None) for name in _REASONING]
    reasoning = next((text for text in given if text is not None), None)
    if reasoning is not None:
        message["reasoning"] = reasoning
        message["content"] = message.get("content") or ""
    if isinstance(message.get("content"), list | tuple):
        message["content"] = _join_parts(message["content"])
    return message


def _join_parts(parts: Sequence[Any]) -> str:
    text = join_text_parts(parts)
    if text is None:
        kinds = [part.get("type") if isinstance(part, Mapping) else part for part in parts]
        kind = next((kind for kind in kinds if kind != "text"), "text")
        raise SafeDraftError(
            f"a message has a part of type {kind!r}: only text can be read, as "
            "{'type': 'text', 'text': …}"
        )
    return text


def join_text_parts(parts: Sequence[Any]) -> str | None:
    """Join the parts of a message's content; None if it has no parts or a part is not text.

    A refusal is text that the assistant said. Keys that change nothing in a text are not used.

    Raises:
        SafeDraftError: a text has a key of another kind, which would be ignored.
    """
    texts = [_text_of(part) for part in parts]
    known = [text for text in texts if text is not None]
    return "".join(known) if known and len(known) == len(texts) else None


def _text_of(part: Any) -> str | None:
    """The text of a part of a message's content; None if the part is not text."""
    if not isinstance(part, Mapping) or part.get("type") not in _TEXT_PARTS:
        return None
    kind = part["type"]
    text = part.get(kind)
    given = {key for key, value in part.items() if value is not None}
    if other := sorted(map(str, given - _INERT_KEYS - {"type", kind})):
        raise SafeDraftError(
            f"a part of type {kind!r} has a key {other[0]!r}, which is not known: leave it out"
        )
    return text if isinstance(text, str) else None


def _require_valid(message: Message) -> None:
    if not isinstance(message, Mapping) or not all(
        isinstance(message.get(name), str) for name in ("role", "content")
    ):
        raise SafeDraftError("every message needs a 'role' and a 'content', both strings")
    if message["role"] not in _ROLES:
        raise SafeDraftError(f"role {message['role']!r} is unknown: {', '.join(_ROLES)} are known")
    if "reasoning" in message and (
        message["role"] != "assistant" or not isinstance(message["reasoning"], str)
    ):
        raise SafeDraftError("only an assistant's message has a 'reasoning', which is a string")
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if not (isinstance(function, Mapping) and isinstance(function.get("name"), str)):
            raise SafeDraftError("a message's 'tool_calls' each need a 'function' with a 'name'")
    if not is_valid_unicode(message["content"] + message.get("reasoning", "")):
        raise SafeDraftError("a message is not valid Unicode: send it as UTF-8")


def is_valid_unicode(text: str) -> bool:
    """Return whether text can be written as UTF-8; broken input contains lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
