"""The bodies of the requests of every route.

A parameter that is neither listed here nor in ``neutral`` is refused by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from safedraft.core.config import SamplingParams, StructuredOutputs
from safedraft.server.neutral import (
    Body,
    EmptyList,
    InertParameters,
    TextFormat,
    UnsupportedParameters,
)
from safedraft.server.settings import Limits
from safedraft.text.messages import Message, join_text_parts

MAX_TOP_LOGPROBS = 20
"""Upper bound of OpenAI's API."""


def _join_text_parts(value: Any) -> Any:
    """Join a content of text parts; return any other value as it is, for the type to refuse."""
    text = join_text_parts(value) if isinstance(value, list) else None
    return value if text is None else text


def _wrap_in_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Text = Annotated[
    str,
    BeforeValidator(_join_text_parts),
    WithJsonSchema({"type": "string"}),
]
_NonEmpty = Annotated[str, StringConstraints(min_length=1)]
_OneOrMore = WithJsonSchema(
    {
        "anyOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "items": {"type": "string", "minLength": 1}},
        ]
    }
)
StopStrings = Annotated[
    list[_NonEmpty], Field(fail_fast=True), BeforeValidator(_wrap_in_list), _OneOrMore
]
Prompts = Annotated[
    list[_NonEmpty], Field(min_length=1, fail_fast=True), BeforeValidator(_wrap_in_list), _OneOrMore
]
Count = Annotated[int, Field(ge=1)]

_IN_PLACE_OF_CONTENT = ("tool_calls", "reasoning", "reasoning_content")
"""Fields of an assistant's message that may stand without a content."""


class ChatMessage(Body):
    """One message of a conversation; ``developer`` means the same as ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text
    name: str | None = None
    """The speaker's name, which templates do not show; it changes nothing."""
    refusal: Annotated[None, WithJsonSchema({"type": ["string", "null"]})] = None
    """What the assistant said instead of a content; it becomes the content. Like the fields below,
    it is sent by OpenAI's client when it returns an assistant's message."""
    annotations: EmptyList | None = None
    audio: None = None
    function_call: None = None
    tool_calls: EmptyList | None = None
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

    def to_message(self) -> Message:
        """Return the message in the form that the library takes."""
        message = {"role": self.role, "content": self.content}
        reasoning = self.reasoning if self.reasoning is not None else self.reasoning_content
        return message if reasoning is None else {**message, "reasoning": reasoning}


class JsonObjectFormat(Body):
    """Replies that are JSON objects."""

    type: Literal["json_object"]

    @property
    def form(self) -> StructuredOutputs:
        """The form as the library names it."""
        return StructuredOutputs(json_object=True)


class NamedSchema(Body):
    """A JSON schema, as OpenAI's API wraps it."""

    definition: Annotated[dict[str, Any], Field(alias="schema")]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    """Whether replies are kept to the schema, which they are here in any case."""


class JsonSchemaFormat(Body):
    """Replies that are valid under a JSON schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema

    @property
    def form(self) -> StructuredOutputs:
        """The form as the library names it."""
        return StructuredOutputs(json_schema=self.json_schema.definition)


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]

Messages = Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]


class StreamOptions(Body):
    """Options of a streamed response."""

    include_usage: bool | None = None
    """Whether the last event holds the usage."""
    include_obfuscation: Literal[False] | None = None
    """Whether events are padded to one length, which this server does not do."""
    continuous_usage_stats: Literal[False] | None = None
    """Whether every event holds the usage, which this server does not do."""


class SafeDraftOptions(Body):
    """SafeDraft's own parameters; each is refused unless the operator allows it."""

    telemetry: bool = False
    """Whether the response reports how each token was chosen, and the match ratios."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Constants of the method for this request, by name; the others keep the pair's values."""
    rule: str | None = None
    """The rule that decides each token, by its name: ``target_only`` is the target without SSD."""


class SamplingRequest(UnsupportedParameters, InertParameters, ABC):
    """The parameters that chat completions and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    """0 (greedy) by default, as in SSD's published results."""
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """An extension: sample from the k most likely tokens of the composite; 0 and -1 keep all."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopStrings | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = None
    """An extension, as in vLLM: tokens that end the reply."""
    max_tokens: Count | None = None
    safedraft: SafeDraftOptions | None = None

    @field_validator("stream_options")
    @classmethod
    def _drop_without_stream(
        cls, options: StreamOptions | None, info: ValidationInfo
    ) -> StreamOptions | None:
        """Drop stream options without effect from a request for a response that is not streamed."""
        return options if info.data.get("stream") or (options and options.include_usage) else None

    @property
    @abstractmethod
    def alternatives(self) -> int | None:
        """Number of top log probabilities per token; None if no log probabilities are wanted."""

    @property
    def token_limit(self) -> int | None:
        """Maximum number of new tokens that the request names."""
        return self.max_tokens

    @cached_property
    def form(self) -> StructuredOutputs | None:
        """The form that the replies must have; None for any."""
        return None

    @property
    def wants_usage_chunk(self) -> bool:
        """Whether a stream ends with a chunk that holds the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def build_sampling(self, index: int, limits: Limits) -> SamplingParams:
        """Build the sampling parameters of the reply at ``index``, which has its own seed.

        Raises:
            ValidationError: a value is out of the library's range.
        """
        values = {
            "max_new_tokens": min(self.token_limit or limits.new_tokens, limits.new_tokens),
            "temperature": self.temperature or 0.0,
            "top_k": max(self.top_k or 0, 0),
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "seed": None if self.seed is None else (self.seed + index) % 2**63,
            "stop": tuple(self.stop or ()),
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "structured_outputs": self.form,
        }
        return limits.cap(SamplingParams.model_validate(values))


class ChatRequest(SamplingRequest):
    """The body of ``/v1/chat/completions``."""

    messages: Messages
    chat_template_kwargs: dict[str, Any] | None = None
    """An extension, as in vLLM: variables of the chat template, such as ``enable_thinking``."""
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None  # type: ignore[assignment]
    """The form of the replies; a reply in a form other than text may be a refusal instead."""
    add_generation_prompt: bool | None = None
    """An extension, as in vLLM: true unless the last message is the assistant's."""
    continue_final_message: bool | None = None
    """An extension, as in vLLM: true only if the last message is the assistant's."""

    @field_validator("top_logprobs")
    @classmethod
    def _drop_without_logprobs(cls, count: int | None, info: ValidationInfo) -> int | None:
        """Drop a ``top_logprobs`` of 0 if no log probabilities are requested."""
        return count if count or info.data.get("logprobs") else None

    @field_validator("add_generation_prompt", "continue_final_message")
    @classmethod
    def _require_own_way(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        """Refuse a value that would change the prompt from the one that is made here."""
        messages = info.data.get("messages")
        if value is None or not messages:
            return value
        continues = messages[-1].role == "assistant"
        wanted = continues is (info.field_name == "continue_final_message")
        if value is not wanted:
            raise ValueError(
                "a last message of the assistant is continued here, and any other is answered: "
                f"leave the parameter out, or let it be {str(wanted).lower()}"
            )
        return value

    @property
    def token_limit(self) -> int | None:
        """See ``SamplingRequest``; the parameter has two names here."""
        return self.max_tokens or self.max_completion_tokens

    @cached_property
    def form(self) -> StructuredOutputs | None:
        """See ``SamplingRequest``."""
        asked = self.response_format
        return None if asked is None or isinstance(asked, TextFormat) else asked.form

    @property
    def alternatives(self) -> int | None:
        """See ``SamplingRequest``."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(SamplingRequest):
    """The body of ``/v1/completions``.

    Prompts given as token ids are refused, because they could hold control tokens.
    """

    prompt: Prompts
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @property
    def alternatives(self) -> int | None:
        """See ``SamplingRequest``."""
        return self.logprobs


class TokenizeRequest(Body):
    """The body of ``/tokenize``, which holds either a conversation or a text."""

    model: str | None = None
    messages: Messages | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    prompt: Annotated[str, StringConstraints(min_length=1)] | None = None
