"""The JSON objects that the server sends: the subset of OpenAI's API that it implements.

A field is sent if the code that builds the object sets it, even to None: OpenAI's own streams send
some nulls. The order of the fields is the order in the JSON.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from safedraft.prompts.phrases import Verdict

FinishReason = Literal["stop", "length", "tool_calls"]


class WireModel(BaseModel):
    """Base of every object on the wire."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that were set, in types that ``json.dumps`` accepts."""
        return self.model_dump(mode="json", exclude_unset=True)


class ErrorDetail(WireModel):
    """An error in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    """The parameter of the request that is wrong, if it is one."""
    code: str | None = None


class ErrorBody(WireModel):
    """The body of every response with an error status, and an event of a stream that fails."""

    error: ErrorDetail


class Usage(WireModel):
    """Number of tokens that a request took."""

    completion_tokens: int
    prompt_tokens: int
    """Each prompt is counted once, with the longer of the two models' token sequences."""
    total_tokens: int


class TokenTelemetry(WireModel):
    """The record of how one token was chosen."""

    id: int
    text: str
    matched: bool
    scheme: str | None
    alpha: float
    threshold: float | None
    """The threshold of the match ratio of the position's bin; null without a switch."""
    match_ratio: float | None
    """The match ratio of the bin that ends at the position; null at all others."""
    draft_probability: float | None
    target_probability: float
    block: int


class Telemetry(WireModel):
    """SafeDraft's extension of a choice."""

    tokens: list[TokenTelemetry]
    statistics: dict[str, Any] | None = None
    """Sent once, when the reply has ended."""
    verdict: Verdict | None = None
    """Sent with the statistics: the behavior of the reply, judged by its phrases."""


class TopLogprob(WireModel):
    """One of the most likely tokens at a position."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(TopLogprob):
    """The token of the reply at a position, and the most likely ones there."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(WireModel):
    """Log probabilities of a chat completion's choice: of its content or of its refusal."""

    content: list[TokenLogprob] | None
    refusal: list[TokenLogprob] | None


class CalledFunction(WireModel):
    """The name and the arguments of a called function."""

    name: str
    arguments: str
    """A JSON object."""


class ToolCall(WireModel):
    """A call of a tool."""

    id: str
    function: CalledFunction
    type: Literal["function"]


class ToolCallDelta(ToolCall):
    """A call of a tool in a stream, which one chunk holds as a whole."""

    index: int
    """Index of the call in the reply, from 0."""


class AssistantMessage(WireModel):
    """The whole text of a reply, and the tools that it calls."""

    content: str | None
    refusal: str | None
    """A reply that refuses where JSON or a call was asked for; the content is null then."""
    role: Literal["assistant"]
    tool_calls: list[ToolCall] | None = None
    """Sent only if there are any; the content is the text before them, or null."""


class ChatChoice(WireModel):
    """One reply of a chat completion."""

    finish_reason: FinishReason
    index: int
    logprobs: ChatLogprobs | None
    message: AssistantMessage
    safedraft: Telemetry | None = None


class ChatCompletion(WireModel):
    """The response of ``/v1/chat/completions`` that is not streamed."""

    id: str
    choices: list[ChatChoice]
    created: int
    """Unix time, in seconds."""
    model: str
    object: Literal["chat.completion"]
    usage: Usage


class Delta(WireModel):
    """The part that a chunk adds to the message."""

    content: str | None = None
    refusal: str | None = None
    role: Literal["assistant"] | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(WireModel):
    """A piece of one reply."""

    delta: Delta
    index: int
    finish_reason: FinishReason | None
    logprobs: ChatLogprobs | None
    safedraft: Telemetry | None = None


class ChatCompletionChunk(WireModel):
    """One event of a streamed chat completion."""

    id: str
    choices: list[ChunkChoice]
    created: int
    """Unix time, in seconds."""
    model: str
    object: Literal["chat.completion.chunk"]
    usage: Usage | None = None


class CompletionLogprobs(WireModel):
    """Log probabilities of a completion's choice, one entry per token in every list."""

    text_offset: list[int]
    """Position of the token's text in the text of the reply, in characters."""
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class CompletionChoice(WireModel):
    """One reply of a completion, or a piece of it in a stream."""

    finish_reason: FinishReason | None
    """Null in a stream until the reply has ended."""
    index: int
    logprobs: CompletionLogprobs | None
    text: str
    safedraft: Telemetry | None = None


class Completion(WireModel):
    """The response of ``/v1/completions``, and every event of its streams."""

    id: str
    choices: list[CompletionChoice]
    created: int
    """Unix time, in seconds."""
    model: str
    object: Literal["text_completion"]
    usage: Usage | None = None


class PairDescription(WireModel):
    """The facts about the pair that clients may see, and what they may request."""

    target: str
    draft: str
    warnings: list[str]
    """Why replies may be less safe than expected, such as a draft without an adapter."""
    rule: str
    """The rule of requests that name none."""
    thinks: bool
    """Whether replies begin with reasoning, which a prefill then begins."""
    allow_prefill: bool
    """Whether a conversation may end with an assistant message."""
    requests_may_set_constants: bool
    """Whether a request may set ``safedraft.config`` and ``safedraft.rule``."""
    max_new_tokens: int
    """Maximum number of tokens of one reply."""
    max_temperature: float
    """Temperature of sampled replies; a higher one is lowered to it."""
    config: dict[str, Any]
    """The constants of requests that set none."""
    config_schema: dict[str, Any]
    """The JSON schema of the constants: types, ranges, descriptions."""


class Model(WireModel):
    """The pair under the name that clients use."""

    id: str
    created: int
    """Unix time at which the server was started, in seconds."""
    object: Literal["model"] = "model"
    owned_by: Literal["safedraft"] = "safedraft"
    shutdown_date: None = None
    safedraft: PairDescription | None = None
    """Null unless the operator allows telemetry."""


class ModelList(WireModel):
    """The response of ``/v1/models``."""

    object: Literal["list"] = "list"
    data: list[Model]


class TokenIds(WireModel):
    """The response of ``/tokenize``."""

    tokens: list[int]
    """Token ids of the target's prompt."""
    count: int
    """Length of the target's prompt, in tokens."""
    draft_count: int
    """Length of the draft's prompt, in tokens."""
    max_model_len: int
    """Context length of the model with the shorter one, in tokens."""
