"""The bodies of the requests of every route.

A parameter that is not listed here is refused by name. A parameter that OpenAI or vLLM defines and
SSD does not support is accepted only with the value that has no effect. A null is the same as a
parameter that is left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from safedraft.core.config import SamplingParams
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
Zero = Annotated[float, Field(ge=0, le=0)]
One = Annotated[float, Field(ge=1, le=1)]
EmptyList = Annotated[list[Any], Field(max_length=0)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {name: value for name, value in body.items() if value is not None}


class _TextFormat(_Body):
    type: Literal["text"]


class _UnsupportedParameters(_Body):
    """Parameters that SSD does not support, with the values that have no effect.

    They are OpenAI's, and those that vLLM adds.
    """

    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    response_format: _TextFormat | None = None
    tools: EmptyList | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: EmptyList | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    repetition_penalty: One | None = None
    length_penalty: One | None = None
    min_p: Zero | None = None
    min_tokens: Zero | None = None
    ignore_eos: Literal[False] | None = None
    skip_special_tokens: Literal[True] | None = None
    include_stop_str_in_output: Literal[False] | None = None
    use_beam_search: Literal[False] | None = None


UNSUPPORTED = frozenset(_UnsupportedParameters.model_fields)
"""Names of the parameters that are refused unless their value has no effect."""


class _InertParameters(_Body):
    """OpenAI's parameters that change nothing in a reply; any value is accepted and not used."""

    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    store: bool | None = None


INERT = frozenset(_InertParameters.model_fields)
"""Names of the parameters that are accepted with any value and change nothing."""


class ChatMessage(_Body):
    """One message of a conversation; ``developer`` means the same as ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text
    name: str | None = None
    """The speaker's name, which templates do not show; it changes nothing."""
    refusal: None = None
    """Like the fields below, sent by OpenAI's client when it returns an assistant's message."""
    annotations: EmptyList | None = None
    audio: None = None
    function_call: None = None
    tool_calls: EmptyList | None = None
    reasoning: str | None = None
    """An assistant's reasoning, as vLLM and OpenRouter name it; templates decide what stays."""
    reasoning_content: str | None = None
    """The same, as DeepSeek names it."""

    def to_message(self) -> Message:
        """Return the message in the form that the library takes."""
        role = "system" if self.role == "developer" else self.role
        message = {"role": role, "content": self.content}
        reasoning = self.reasoning if self.reasoning is not None else self.reasoning_content
        return message if reasoning is None else {**message, "reasoning": reasoning}


Messages = Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]


class StreamOptions(_Body):
    """Options of a streamed response."""

    include_usage: bool | None = None
    """Whether the last event holds the usage."""


class SafeDraftOptions(_Body):
    """SafeDraft's own parameters; each is refused unless the operator allows it."""

    telemetry: bool = False
    """Whether the response reports how each token was chosen, and the match ratios."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Constants of the method for this request, by name; the others keep the pair's values."""


class SamplingRequest(_UnsupportedParameters, _InertParameters, ABC):
    """The parameters that chat completions and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    """0 (greedy) by default, as in SSD's published results."""
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    """An extension: sample from the k most likely tokens of the composite; 0 keeps all."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopStrings | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = None
    """An extension, as in vLLM: tokens that end the reply."""
    max_tokens: Count | None = None
    safedraft: SafeDraftOptions | None = None

    @property
    @abstractmethod
    def alternatives(self) -> int | None:
        """Number of top log probabilities per token; None if no log probabilities are wanted."""

    @property
    def token_limit(self) -> int | None:
        """Maximum number of new tokens that the request names."""
        return self.max_tokens

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
            "top_k": self.top_k or 0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "seed": None if self.seed is None else (self.seed + index) % 2**63,
            "stop": tuple(self.stop or ()),
            "stop_token_ids": tuple(self.stop_token_ids or ()),
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

    @property
    def token_limit(self) -> int | None:
        """See ``SamplingRequest``; the parameter has two names here."""
        return self.max_tokens or self.max_completion_tokens

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


class TokenizeRequest(_Body):
    """The body of ``/tokenize``, which holds either a conversation or a text."""

    model: str | None = None
    messages: Messages | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    prompt: Annotated[str, StringConstraints(min_length=1)] | None = None
