"""What a client may ask: the bodies of every route, and what the operator's limits say to them.

A parameter that is not here is refused by name; one that OpenAI knows and SSD does not honour is
taken only with the value that means nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
)

from safedraft.core.config import SamplingParams
from safedraft.server.settings import Limits
from safedraft.text.chat import Message

MOST_TOP_LOGPROBS = 20
"""As in OpenAI's API."""


def _joined(value: Any) -> Any:
    """A message in parts of text is one text; what is no such part stays for the type to refuse."""
    if not isinstance(value, list) or not value:
        return value
    texts = [
        part["text"]
        for part in value
        if isinstance(part, dict) and part.get("type") == "text" and set(part) == {"type", "text"}
    ]
    whole = len(texts) == len(value) and all(isinstance(text, str) for text in texts)
    return "".join(texts) if whole else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Text = Annotated[
    str,
    BeforeValidator(_joined),
    WithJsonSchema({"type": "string"}),
]
_Some = Annotated[str, StringConstraints(min_length=1)]
_OneOrMore = WithJsonSchema(
    {
        "anyOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "items": {"type": "string", "minLength": 1}},
        ]
    }
)
Stops = Annotated[list[_Some], Field(fail_fast=True), BeforeValidator(_listed), _OneOrMore]
Prompts = Annotated[
    list[_Some], Field(min_length=1, fail_fast=True), BeforeValidator(_listed), _OneOrMore
]
Count = Annotated[int, Field(ge=1)]
Zero = Annotated[float, Field(ge=0, le=0)]
Nothing = Annotated[list[Any], Field(max_length=0)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class _TextFormat(_Body):
    type: Literal["text"]


class _Unsupported(_Body):
    """OpenAI's parameters that SSD does not honour, with what clients send to say so."""

    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    response_format: _TextFormat | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Nothing | None = None
    store: Literal[False] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    parallel_tool_calls: bool | None = None
    user: Annotated[str, Field(max_length=0)] | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None


UNSUPPORTED = frozenset(_Unsupported.model_fields)
"""Parameters that are refused unless their value means nothing."""


class ChatMessage(_Body):
    """One turn; ``developer`` is another word for ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text
    name: Annotated[str, Field(max_length=0)] | None = None
    refusal: None = None
    """As OpenAI's client writes an assistant's turn back; and so are those that follow."""
    annotations: Nothing | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing | None = None

    def plain(self) -> Message:
        """As the library takes it."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.content}


Messages = Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]


class StreamOptions(_Body):
    """What a stream tells besides the text."""

    include_usage: bool | None = None


class Extension(_Body):
    """SafeDraft's own wishes, where the operator allows them."""

    telemetry: bool = False
    """Whether the reply tells each token's match and scheme, and the match ratios."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Constants of the method for this request, by name."""


class Sampled(_Unsupported):
    """What the bodies of chat and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    """0, greedy, when not given: what SSD's figures are of."""
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    """Not OpenAI's: the k most likely tokens of the composite; 0 keeps all."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stops | None = None
    max_tokens: Count | None = None
    safedraft: Extension | None = None

    @property
    def new_tokens(self) -> tuple[str, int | None]:
        """The parameter that limits the reply, and its value."""
        return "max_tokens", self.max_tokens

    @property
    def usage_in_stream(self) -> bool:
        """Whether a stream ends in what it cost."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, index: int, limits: Limits) -> SamplingParams:
        """How the ``index``-th reply is sampled: each has a seed of its own."""
        return SamplingParams(
            max_new_tokens=self.new_tokens[1] or limits.new_tokens,
            temperature=self.temperature or 0.0,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=None if self.seed is None else (self.seed + index) % 2**63,
            stop=tuple(self.stop or ()),
        )


class ChatRequest(Sampled):
    """The body of ``/v1/chat/completions``."""

    messages: Messages
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None

    @property
    def new_tokens(self) -> tuple[str, int | None]:
        """Under whichever of its two names it is given."""
        if self.max_completion_tokens is None:
            return "max_tokens", self.max_tokens
        return "max_completion_tokens", self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        """How many log probabilities each token brings besides its own; None for none at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Sampled):
    """The body of ``/v1/completions``; prompts in token ids are not taken: they could hold control
    tokens."""

    prompt: Prompts
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None

    @property
    def alternatives(self) -> int | None:
        """As of a ``ChatRequest``."""
        return self.logprobs


Asked = ChatRequest | CompletionRequest
"""What replies are sampled for."""


class TokenizeRequest(_Body):
    """The body of ``/tokenize``: a conversation or a text."""

    model: str | None = None
    messages: Messages | None = None
    prompt: Annotated[str, StringConstraints(min_length=1)] | None = None
