"""Fields of a request to vLLM that SSD honors; all others are refused."""

from __future__ import annotations

from typing import Any

from safedraft.core.errors import SafeDraftError

HONORED = {
    "n", "temperature", "top_p", "top_k", "seed", "stop", "stop_token_ids", "ignore_eos",
    "max_tokens", "detokenize", "skip_special_tokens", "spaces_between_special_tokens",
    "include_stop_str_in_output", "output_kind", "stream_interval", "skip_clone",
    "output_text_buffer_length", "_eos_token_id", "_all_stop_token_ids", "_watermarking_skipped",
    "extra_args", "flat_logprobs", "skip_reading_prefix_cache", "repetition_detection",
    "watermarking", "structured_outputs", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "allowed_token_ids", "bad_words", "_bad_words_token_ids", "logprobs",
}  # fmt: skip
"""Fields of vLLM's SamplingParams that mean the same with SSD as without; penalties and forbidden
tokens change both models' logits, and log probabilities are the composite's. All others would
change the target's distribution alone, or report it, and must be at their defaults."""


def require_honored(params: Any) -> None:
    """Refuse vLLM ``SamplingParams`` that SSD does not support, unknown fields included.

    Raises:
        SafeDraftError: a field is not supported; the message names the field.
    """
    default = type(params)()
    for name in params.__struct_fields__:
        value = getattr(params, name)
        if name not in HONORED and not _unset(value, getattr(default, name)):
            raise SafeDraftError(f"{name} is not supported with SSD")
    # Beam search chooses among the most likely tokens itself, and asks for them in this way.
    if params.logprobs is not None and not params.detokenize:
        raise SafeDraftError(
            "beam search is not supported with SSD, nor are logprobs with detokenize at false"
        )


def _unset(value: Any, default: Any) -> bool:
    if value is None or value is default:
        return True
    plain = isinstance(value, bool | int | float | str | list | dict | set)
    return plain and bool(value == default or (not isinstance(value, bool | int) and not value))
