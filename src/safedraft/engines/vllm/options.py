"""What the operator sets for the engine, and what a request may ask for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from safedraft.core.config import OF_SPEED, Positive, SamplingParams, SSDConfig
from safedraft.core.errors import SafeDraftError, problems
from safedraft.engines.vllm.rule import Request

KEY = "safedraft"
"""Under which vLLM's ``additional_config`` carries the settings to every process."""

PREFIX = "ssd_"
"""What the names of a request's own constants begin with in ``extra_args`` (``vllm_xargs``)."""

TRACE = PREFIX + "trace"
"""The name under which a request's steps are kept for whoever asks the workers for them."""

STATISTICS = PREFIX + "statistics"
"""The name under which any request may ask for its reply's statistics."""

INT8 = "safedraft_int8"
"""What vLLM calls the quantization of a draft whose weights are kept in 8 bits."""

_OF_NO_REQUEST = OF_SPEED | {"prefill_scheme"}
"""Constants that no request can set: those of the whole batch, and what only text can tell."""

HONOURED = {
    "n", "temperature", "top_p", "top_k", "seed", "stop", "stop_token_ids", "ignore_eos",
    "max_tokens", "detokenize", "skip_special_tokens", "spaces_between_special_tokens",
    "include_stop_str_in_output", "output_kind", "stream_interval", "skip_clone",
    "output_text_buffer_length", "_eos_token_id", "_all_stop_token_ids", "_watermarking_skipped",
    "extra_args", "flat_logprobs", "skip_reading_prefix_cache", "repetition_detection",
    "watermarking",
}  # fmt: skip
"""Fields of vLLM's SamplingParams that mean with SSD what they mean without. All others would
reach into the target's distribution alone, or show it, and have to be at their defaults."""

_HINTS = {
    "logprobs": " (nor is beam search, which is built on them)",
    "structured_outputs": " (nor are response_format and forced tool calls, which are built on it)",
}


class Settings(BaseModel):
    """The operator's side: the same in every process of the engine."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    config: SSDConfig = SSDConfig()
    """Constants of a request that sets none; ``draft_tokens`` is vLLM's to know, and a
    ``prefill_scheme`` is refused, as the rule sees token ids."""
    vocabulary: Positive
    """V: ids below it are shared by target and draft; rows past it are padding."""
    requests_may_set_constants: bool = False
    """Whether a request may have its own constants; with strengths of 0 that is no defense."""
    traces: bool = False
    """Whether the steps of requests are kept on request; whoever asks has to take them."""

    @field_validator("config")
    @classmethod
    def _without_prefill_scheme(cls, config: SSDConfig) -> SSDConfig:
        return config.for_turn(begun=None)

    @classmethod
    def of(cls, vllm_config: Any) -> Settings | None:
        """The settings in a ``VllmConfig``; None if it is not SafeDraft's engine.

        Raises:
            SafeDraftError: they are not valid.
        """
        extra = vllm_config.additional_config
        found = extra.get(KEY) if isinstance(extra, Mapping) else None
        if found is None:
            return None
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            raise SafeDraftError(f"additional_config: {KEY}: {problems(error)[0]}") from error

    def request(self, params: Any, request_id: str) -> Request:
        """The rule's side of a request with these vLLM ``SamplingParams``.

        A sampled request without a seed has one that follows from its id, so that all ranks of a
        tensor-parallel engine draw alike.

        Raises:
            SafeDraftError: it asks for what the rule does not do, or may not be asked for.
        """
        config = self._config(params)
        require_honoured(params)
        seed = params.seed
        if seed is None:
            digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
            seed = int.from_bytes(digest) >> 1
        try:
            sampling = SamplingParams(
                max_new_tokens=params.max_tokens,
                temperature=params.temperature,
                top_k=max(params.top_k, 0),
                top_p=params.top_p,
                seed=seed % 2**63,
            )
        except ValidationError as error:
            raise SafeDraftError(problems(error)[0]) from error
        return Request(config, sampling, end_tokens(params))

    def trace_of(self, params: Any) -> str | None:
        """Under which name the steps of a request are to be kept, if at all."""
        name = (params.extra_args or {}).get(TRACE)
        return None if name is None else str(name)

    def _config(self, params: Any) -> SSDConfig:
        asked = dict(params.extra_args or {})
        if TRACE in asked and not self.traces:
            raise SafeDraftError(f"{TRACE}: this engine keeps no traces")
        for name in (TRACE, STATISTICS):
            asked.pop(name, None)
        if not asked:
            return self.config
        known = {
            PREFIX + name: name for name in SSDConfig.model_fields if name not in _OF_NO_REQUEST
        }
        if unknown := sorted(asked.keys() - known):
            names = ", ".join((*known, STATISTICS))
            raise SafeDraftError(f"{unknown[0]}: not known with SSD; known are {names}")
        if not self.requests_may_set_constants:
            raise SafeDraftError(
                f"{min(asked)}: the operator does not let requests change the defense's constants"
            )
        changes = {known[name]: value for name, value in asked.items()}
        try:
            return SSDConfig.model_validate(self.config.model_dump() | changes)
        except ValidationError as error:
            raise SafeDraftError(problems(error)[0]) from error


def wants_statistics(params: Any) -> bool:
    """Whether a request with these vLLM ``SamplingParams`` asks for its reply's statistics.

    Raises:
        SafeDraftError: it says neither yes nor no, or its answer has no place for them.
    """
    wanted = (params.extra_args or {}).get(STATISTICS, False)
    if wanted not in (True, False):  # vLLM's server makes 1 and 0 of them
        raise SafeDraftError(f"{STATISTICS}: {wanted!r} is neither true nor false")
    if wanted and params.n > 1:
        raise SafeDraftError(f"{STATISTICS}: the answer has place for one reply's, leave n at 1")
    if wanted and params.output_kind.name == "DELTA":
        raise SafeDraftError(f"{STATISTICS}: a streamed answer has no place for them")
    return bool(wanted)


def end_tokens(params: Any) -> frozenset[int]:
    """What vLLM ends a reply at under these ``SamplingParams``, once the engine completed them."""
    ends = set(params.stop_token_ids or ())
    return frozenset(ends if params.eos_token_id is None else ends | {params.eos_token_id})


def require_honoured(params: Any) -> None:
    """Refuse vLLM ``SamplingParams`` that SSD does not honour; what is not known is not honoured.

    Raises:
        SafeDraftError: names the field.
    """
    default = type(params)()
    for name in params.__struct_fields__:
        value = getattr(params, name)
        if name not in HONOURED and not _unset(value, getattr(default, name)):
            raise SafeDraftError(f"{name} is not supported with SSD{_HINTS.get(name, '')}")


def _unset(value: Any, default: Any) -> bool:
    if value is None or value is default:
        return True
    plain = isinstance(value, bool | int | float | str | list | dict | set)
    return plain and bool(value == default or (not isinstance(value, bool | int) and not value))


def room_for(prompt_tokens: int, max_model_len: int, ahead: int) -> int:
    """Most new tokens behind a prompt, such that the draft never runs out of room.

    vLLM lets the target decide alone where drafts would pass the end of the context; so replies end
    two blocks before it. ``ahead`` is how many tokens a block holds at most.

    Raises:
        SafeDraftError: there is no room.
    """
    room = max_model_len - 2 * ahead - prompt_tokens
    if room < 1:
        raise SafeDraftError(
            f"the prompt has {prompt_tokens} tokens and there is room for "
            f"{max_model_len - 2 * ahead - 1} (a context of {max_model_len}, less two blocks of "
            f"{ahead} tokens): shorten it"
        )
    return room
