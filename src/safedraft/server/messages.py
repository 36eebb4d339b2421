"""The messages of a conversation in a request."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from safedraft.server.neutral import Body, EmptyList
from safedraft.server.tools import EarlierToolCall
from safedraft.text.messages import Message, join_text_parts


def _join_text_parts(value: Any) -> Any:
    """Join a content of text parts; return any other value as it is, for the type to refuse."""
    text = join_text_parts(value) if isinstance(value, list) else None
    return value if text is None else text


Text = Annotated[
    str,
    BeforeValidator(_join_text_parts),
    WithJsonSchema({"type": "string"}),
]
_IN_PLACE_OF_CONTENT = ("tool_calls", "reasoning", "reasoning_content")
"""Fields of an assistant's message that may stand without a content."""


class ChatMessage(Body):
    """One message of a conversation; ``developer`` means the same as ``system``."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text
    name: str | None = None
    """The speaker's name, which templates do not show; it changes nothing."""
    refusal: Annotated[None, WithJsonSchema({"type": ["string", "null"]})] = None
    """The assistant's refusal in place of a content; it becomes the content. Like the fields below,
    it is sent by OpenAI's client when it returns an assistant's message."""
    annotations: EmptyList | None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[EarlierToolCall] | None = None
    tool_call_id: str | None = None
    """The call that a message of the role ``tool`` answers."""
    reasoning: str | None = None
    """An assistant's reasoning, as vLLM and OpenRouter name it; templates decide what stays."""
    reasoning_content: str | None = None
    """The same, as DeepSeek names it."""

    @model_validator(mode="before")
    @classmethod
    def _read_refusal(cls, message: Any) -> Any:
        """Give an assistant's message without a content its refusal, or an empty content.

        The content is empty only if there is something else that the assistant said or did.
        """
        if not isinstance(message, dict) or message.get("role") != "assistant":
            return message
        content, refusal = message.get("content"), message.get("refusal")
        if isinstance(refusal, str) and not (content and refusal):
            return {**message, "content": content or refusal, "refusal": None}
        instead = any(message.get(name) is not None for name in _IN_PLACE_OF_CONTENT)
        return {**message, "content": ""} if content is None and instead else message

    @model_validator(mode="after")
    def _require_own_fields(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only a message of the assistant has tool_calls")
        if (self.tool_call_id is not None) is not (self.role == "tool"):
            raise ValueError("a message of the role tool, and no other, has a tool_call_id")
        return self

    def to_message(self) -> Message:
        """Return the message in the form that the library takes."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        reasoning = self.reasoning if self.reasoning is not None else self.reasoning_content
        if reasoning is not None:
            message["reasoning"] = reasoning
        if self.tool_calls:
            message["tool_calls"] = [call.to_message() for call in self.tool_calls]
        return message


def _require_known_calls(messages: list[ChatMessage]) -> list[ChatMessage]:
    """Refuse a tool's message that answers no earlier call, and calls that nothing follows."""
    called: set[str] = set()
    for index, message in enumerate(messages):
        called |= {call.id for call in message.tool_calls or ()}
        if message.role == "tool" and message.tool_call_id not in called:
            raise ValueError(f"the tool_call_id of message {index} is that of no call before it")
    if messages[-1].tool_calls:
        raise ValueError("the last message calls tools: what they gave must follow")
    return messages


Messages = Annotated[
    list[ChatMessage],
    Field(min_length=1, fail_fast=True),
    AfterValidator(_require_known_calls),
]
