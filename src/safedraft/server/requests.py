"""The bodies of the requests of every route.

A parameter that is neither listed here nor in ``neutral`` is refused by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from safedraft.core.config import RiskConfig, SamplingParams, StructuredOutputs
from safedraft.server.formats import ResponseFormat
from safedraft.server.messages import Messages
from safedraft.server.neutral import (
    Body,
    InertParameters,
    TextFormat,
    UnsupportedParameters,
)
from safedraft.server.settings import Limits
from safedraft.server.shifts import ShiftParameters
from safedraft.server.tools import OPENING, NamedTool, Tool, ToolChoice, write_grammar
from safedraft.text.grammar import is_refusal_of_json, schema_of

MAX_TOP_LOGPROBS = 20
"""Upper bound of OpenAI's API."""

MAX_TOOLS = 128
"""Upper bound of OpenAI's API."""


def _wrap_in_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


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


def _require_unique_names(tools: list[Tool]) -> list[Tool]:
    names = [tool.function.name for tool in tools]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two functions have the name {repeated}")
    return tools


Tools = Annotated[
    list[Tool],
    Field(max_length=MAX_TOOLS, fail_fast=True),
    AfterValidator(_require_unique_names),
]


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


class SamplingRequest(UnsupportedParameters, InertParameters, ShiftParameters, ABC):
    """The parameters that chat completions and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    """0 (greedy) by default, as in SSD's published results."""
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**63)] | None = None
    """An extension: sample from the k most likely tokens of the composite; 0 and -1 keep all."""
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    """An extension, as in vLLM: sample from tokens this many times as likely as the likeliest."""
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

    def find_name(self, refused: str | None) -> str | None:
        """The request's parameter that sets a parameter of the library; None if none does."""
        own = {"structured_outputs": self.form_name, "top_logprobs": "logprobs"}
        own |= dict.fromkeys(RiskConfig.model_fields, "safedraft.config")
        names = {name: name for name in type(self).model_fields} | own
        return names.get(refused) if refused else None

    @property
    def token_limit(self) -> int | None:
        """Maximum number of new tokens that the request names."""
        return self.max_tokens

    def build_form(self, *, marked: bool) -> StructuredOutputs | None:
        """Build the form that the replies must have; None for any.

        Args:
            marked: whether the markers of a tool's call are tokens of the target.
        """
        return None

    @property
    def function_names(self) -> list[str]:
        """The functions that a reply may call."""
        return []

    @property
    def form_name(self) -> str:
        """The parameter that the form comes from."""
        return "response_format"

    def is_refusal(self, text: str) -> bool:
        """Whether a reply, or its beginning, is a refusal in place of the form."""
        return False

    @property
    def wants_usage_chunk(self) -> bool:
        """Whether a stream ends with a chunk that holds the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def build_sampling(
        self, index: int, limits: Limits, form: StructuredOutputs | None
    ) -> SamplingParams:
        """Build the sampling parameters of the reply at ``index``, which has its own seed.

        Raises:
            ValidationError: a value is out of the library's range.
        """
        values = {
            "max_new_tokens": min(self.token_limit or limits.new_tokens, limits.new_tokens),
            "temperature": self.temperature or 0.0,
            "top_k": max(self.top_k or 0, 0),
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "min_p": self.min_p or 0.0,
            **self.shifts,
            "seed": None if self.seed is None else (self.seed + index) % 2**63,
            "stop": tuple(self.stop or ()),
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "structured_outputs": form,
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
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    """Whether a reply calls tools: as the model chooses (``auto``, the default), always
    (``required``, or the named one), or never; a reply that has to call may be a refusal instead.
    """
    parallel_tool_calls: bool | None = None
    """Whether a reply may have several calls; true by default. A named function is called once."""
    add_generation_prompt: bool | None = None
    """An extension, as in vLLM: true unless the last message is of the assistant."""
    continue_final_message: bool | None = None
    """An extension, as in vLLM: true only if the last message is of the assistant."""

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

    @field_validator("tool_choice")
    @classmethod
    def _require_known_tool(
        cls, choice: str | NamedTool | None, info: ValidationInfo
    ) -> str | NamedTool | None:
        """Refuse a choice of a tool that is not there."""
        if "tools" not in info.data:  # they are refused themselves
            return choice
        names = [tool.function.name for tool in info.data["tools"] or ()]
        if choice == "required" and not names:
            raise ValueError("there are no tools to call")
        if isinstance(choice, NamedTool) and choice.function.name not in names:
            raise ValueError(f"the tools have no function {choice.function.name!r}")
        return choice

    @property
    def token_limit(self) -> int | None:
        """See ``SamplingRequest``; the parameter has two names here."""
        return self.max_tokens or self.max_completion_tokens

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools that a reply may call."""
        if isinstance(self.tool_choice, NamedTool):
            name = self.tool_choice.function.name
            return [tool for tool in self.tools or () if tool.function.name == name]
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def _must_call(self) -> bool:
        return bool(self.callable_tools) and self.tool_choice not in (None, "auto")

    @property
    def _answer_form(self) -> StructuredOutputs | None:
        """The form of a reply that calls no tools."""
        asked = self.response_format
        return None if asked is None or isinstance(asked, TextFormat) else asked.form

    def build_form(self, *, marked: bool) -> StructuredOutputs | None:
        """See ``SamplingRequest``.

        If the model decides whether to call a function, and no form of the calls is required, a
        reply may be any text.
        """
        answer, functions = self._answer_form, [tool.function for tool in self.callable_tools]
        named = isinstance(self.tool_choice, NamedTool)  # small models repeat a call without end
        several = self.parallel_tool_calls is not False and not named
        free = several and not any(function.strict for function in functions)
        if not functions or (free and answer is None and not self._must_call):
            return answer
        otherwise: Mapping[str, Any] | Literal["text"] | None = None
        if not self._must_call:
            otherwise = "text" if answer is None else schema_of(answer)
        grammar = write_grammar(functions, several=several, otherwise=otherwise, marked=marked)
        return StructuredOutputs(grammar=grammar, refusal=self._must_call or answer is not None)

    @property
    def function_names(self) -> list[str]:
        """See ``SamplingRequest``."""
        return [tool.function.name for tool in self.callable_tools]

    @property
    def form_name(self) -> str:
        """See ``SamplingRequest``."""
        return "tools" if self.callable_tools else "response_format"

    def is_refusal(self, text: str) -> bool:
        """See ``SamplingRequest``."""
        begun = text.lstrip()
        if not begun or (self.callable_tools and begun[0] == OPENING[0]):
            return False
        return self._must_call or (self._answer_form is not None and is_refusal_of_json(begun))

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
    tools: Tools | None = None
    prompt: Annotated[str, StringConstraints(min_length=1)] | None = None
