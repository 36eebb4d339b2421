"""Parameters of OpenAI and vLLM that change no reply, and the values that are accepted for them.

A parameter that SSD does not support is accepted only with the values that have no effect. A null
at any depth is the same as a parameter that is left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Zero = Annotated[float, Field(ge=0, le=0)]
One = Annotated[float, Field(ge=1, le=1)]
EmptyList = Annotated[list[Any], Field(max_length=0)]
EmptyObject = Annotated[dict[str, Any], Field(max_length=0)]

_KEPT = (
    *("messages", "prompt", "response_format", "json_schema", "schema"),
    *("tools", "function", "parameters"),
)
"""Values that are read as they stand: the items of the lists have places that a response or an
error refers to, and a null in a schema means something."""

_DEPTH = 8
"""Depth of lists and objects down to which nulls are dropped."""


class Body(BaseModel):
    """An object of a request, without its nulls."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {
            name: value if name in _KEPT else drop_nulls(value)
            for name, value in body.items()
            if value is not None
        }


def drop_nulls(value: Any, depth: int = _DEPTH) -> Any:
    """Return a JSON value without the nulls in its lists and objects, down to ``depth``."""
    if depth and isinstance(value, dict):
        return {
            name: drop_nulls(item, depth - 1) for name, item in value.items() if item is not None
        }
    if depth and isinstance(value, list):
        return [drop_nulls(item, depth - 1) for item in value if item is not None]
    return value


class TextFormat(Body):
    """Replies of any form."""

    type: Literal["text"]
    json_schema: None = None


class UnsupportedParameters(Body):
    """Parameters that SSD does not support, with the values that have no effect.

    They are those of OpenAI, and those that vLLM adds.
    """

    response_format: TextFormat | None = None
    functions: EmptyList | None = None
    function_call: Literal["none", "auto"] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    audio: None = None
    moderation: None = None
    web_search_options: None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    length_penalty: One | None = None
    min_tokens: Zero | None = None
    priority: Zero | None = None
    ignore_eos: Literal[False] | None = None
    detokenize: Literal[True] | None = None
    skip_special_tokens: Literal[True] | None = None
    spaces_between_special_tokens: bool | None = None
    """Without effect, since no special token is part of a reply's text."""
    include_stop_str_in_output: Literal[False] | None = None
    include_reasoning: Literal[True] | None = None
    use_beam_search: Literal[False] | None = None
    early_stopping: Literal[False] | None = None
    watermarking: Literal[False] | None = None
    bad_words: EmptyList | None = None
    logits_processors: EmptyList | None = None
    documents: EmptyList | None = None
    vllm_xargs: EmptyObject | None = None
    mm_processor_kwargs: EmptyObject | None = None
    media_io_kwargs: EmptyObject | None = None
    stream_interval: Literal[1] | None = None
    return_token_ids: Literal[False] | None = None
    return_tokens_as_token_ids: Literal[False] | None = None
    return_token_offsets: Literal[False] | None = None
    return_prompt_text: Literal[False] | None = None


UNSUPPORTED = frozenset(UnsupportedParameters.model_fields)
"""Names of the parameters that are refused unless their value has no effect."""


class InertParameters(Body):
    """Parameters that change nothing in a reply; any value is accepted and not used."""

    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    """A likely reply, from which OpenAI's servers decode faster."""
    store: bool | None = None
    request_id: str | None = None
    session_id: str | None = None
    cache_salt: str | None = None


INERT = frozenset(InertParameters.model_fields)
"""Names of the parameters that are accepted with any value and change nothing."""
