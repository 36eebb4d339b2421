"""Reject untested vLLM versions and every mode that bypasses the SSD rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from safedraft.core.errors import SafeDraftError
from safedraft.engines.vllm.hooks import require_known_hooks
from safedraft.engines.vllm.options import Settings, count_room, end_tokens, wants_statistics
from safedraft.text.stop import control_stops

SCHEDULER = "safedraft.engines.vllm.scheduler.SSDScheduler"
WORKERS = {
    "cpu": "safedraft.engines.vllm.worker_cpu.SSDCPUWorker",
    "cuda": "safedraft.engines.vllm.worker_cuda.SSDCUDAWorker",
}
"""The worker of each platform, as ``name_platform`` names it."""


def require_engine(vllm_config: Any) -> Settings:
    """Return the settings of an engine that SafeDraft has set up, after checking it.

    Raises:
        SafeDraftError: an untested vLLM, or an option with which a token could be chosen without
            the rule.
    """
    settings = Settings.of(vllm_config)
    if settings is None:
        raise SafeDraftError(
            "SafeDraft's worker needs its settings: start it with `safedraft serve`"
        )
    require_known_hooks()
    if not _admits():
        raise SafeDraftError(
            "SafeDraft's plug-in is not loaded, which refuses what bypasses the rule: "
            "VLLM_PLUGINS, where it is set, must name safedraft"
        )
    for wrong, what in _bypasses(vllm_config):
        if wrong:
            raise SafeDraftError(f"{what} with SSD")
    return settings


def name_platform() -> str:
    """The platform that vLLM runs on; ROCm, which vLLM takes for a kind of CUDA, by its name."""
    from vllm.platforms import current_platform

    return "rocm" if current_platform.is_rocm() else str(current_platform.device_type)


def _admits() -> bool:
    from vllm.v1.engine.input_processor import InputProcessor

    return getattr(InputProcessor.process_inputs, "admits", False)


def admit(request: Any, vllm_config: Any, settings: Settings) -> None:
    """Admit an ``EngineCoreRequest``, with no more new tokens than there is room for, or refuse it.

    Raises:
        SafeDraftError: the reason; vLLM's server answers with it and status 400.
    """
    params = request.sampling_params
    if params is None:
        raise SafeDraftError("SSD generates text: pooling, embeddings and scores are not supported")
    if request.prompt_embeds is not None or request.mm_features:
        raise SafeDraftError("the draft reads token ids: other inputs are not supported with SSD")
    if request.lora_request is not None:
        raise SafeDraftError("an adapter for the target alone is not supported with SSD")
    if request.resumable:
        raise SafeDraftError("a session that is resumed is not supported with SSD")
    _require_grammar_from_the_start(params, vllm_config)
    _add_control_stops(params, vllm_config.model_config)
    outside = [t for t in request.prompt_token_ids if not 0 <= t < settings.vocabulary]
    if outside:
        raise SafeDraftError(
            f"the prompt has ids that target and draft do not share, such as {outside[0]}"
        )
    if stray := [t for t in end_tokens(params) if not 0 <= t < settings.vocabulary]:
        raise SafeDraftError(f"stop_token_ids: {stray[0]} is not a token of target and draft")
    _require_known_words(params, settings.vocabulary)
    ahead = vllm_config.speculative_config.num_speculative_tokens
    length, context = len(request.prompt_token_ids), vllm_config.model_config.max_model_len
    params.max_tokens = min(params.max_tokens, count_room(length, context, ahead))
    admitted = settings.request(params, request.request_id, request.prompt_token_ids)
    risk = admitted.context.risk
    if risk and _may_be_cached(risk.places("draft"), length, vllm_config):
        params.skip_reading_prefix_cache = True  # the states at these places are read
    wants_statistics(params)


def _may_be_cached(places: Sequence[int], length: int, vllm_config: Any) -> bool:
    """Whether a place in a prompt is in a block that vLLM may find in its cache.

    It finds whole blocks, and never the last token.
    """
    size = vllm_config.cache_config.block_size
    return any(place < (length - 1) // size * size for place in places)


def _require_known_words(params: Any, vocabulary: int) -> None:
    """Check that both models have the tokens that a request allows, and that its words have tokens.

    Raises:
        SafeDraftError: they do not.
    """
    if stray := [t for t in params.allowed_token_ids or () if not 0 <= t < vocabulary]:
        raise SafeDraftError(f"allowed_token_ids: {stray[0]} is not a token of target and draft")
    if params.bad_words and params.bad_words_token_ids is None:
        raise SafeDraftError("bad_words: this engine has no tokenizer: forbid tokens by logit_bias")


def _require_grammar_from_the_start(params: Any, vllm_config: Any) -> None:
    """Check that a grammar begins with the reply.

    Raises:
        SafeDraftError: the grammar would begin after the reasoning.
    """
    if not params.structured_outputs:
        return
    structured = vllm_config.structured_outputs_config
    if structured.reasoning_parser and not structured.enable_in_reasoning:
        raise SafeDraftError(
            "structured output after reasoning is not supported with SSD: start the server "
            "without --reasoning-parser, or let the grammar begin with the reply "
            "(--structured-outputs-config.enable_in_reasoning true)"
        )


def _add_control_stops(params: Any, model_config: Any) -> None:
    """Let a reply end at the stop strings that are control tokens, as at its end tokens.

    vLLM looks for stop strings in the text, where control tokens are left out by default.

    Raises:
        SafeDraftError: a stop string has a control token and more.
    """
    if not (params.stop and params.skip_special_tokens):
        return
    from vllm.tokenizers.registry import cached_tokenizer_from_config

    if tokenizer := cached_tokenizer_from_config(model_config):
        control = control_stops(tokenizer, params.stop)
        params.stop_token_ids = sorted({*(params.stop_token_ids or ()), *control})


def _bypasses(vllm_config: Any) -> Iterator[tuple[Any, str]]:
    """Whether each mode that bypasses the rule is set, and how its error begins."""
    spec, model = vllm_config.speculative_config, vllm_config.model_config
    parallel, scheduler = vllm_config.parallel_config, vllm_config.scheduler_config
    device = name_platform()
    yield spec is None or spec.method != "draft_model", "only method draft_model can draft"
    yield spec.rejection_sample_method != "standard", "synthetic acceptance cannot be used"
    yield spec.parallel_drafting, "parallel drafting is not supported"
    yield spec.use_heterogeneous_vocab, "two vocabularies are not supported"
    yield spec.num_speculative_tokens_per_batch_size, "T by load that vLLM chooses is not supported"
    yield (
        vllm_config.use_v2_model_runner,
        "set VLLM_USE_V2_MODEL_RUNNER=0: runner V2 is not supported",
    )
    yield device not in WORKERS, f"the platform {device} is not supported"
    yield parallel.worker_cls != WORKERS.get(device), f"worker_cls must be {WORKERS.get(device)}"
    yield _name(scheduler.scheduler_cls) != SCHEDULER, f"scheduler_cls must be {SCHEDULER}"
    yield scheduler.async_scheduling, "async scheduling is not supported"
    budget = scheduler.max_num_seqs * (spec.num_speculative_tokens + 2)
    few = scheduler.max_num_batched_tokens < budget
    yield few, f"max_num_batched_tokens must be at least max_num_seqs * (T + 3) = {budget}"
    short = spec.draft_model_config.max_model_len < model.max_model_len
    yield short, "max_model_len must not be more than the draft's context"
    yield parallel.pipeline_parallel_size > 1, "pipeline parallelism is not supported"
    yield parallel.decode_context_parallel_size > 1, "context parallelism is not supported"
    yield parallel.prefill_context_parallel_size > 1, "context parallelism is not supported"
    yield vllm_config.lora_config, "adapters of the target are not supported"
    yield vllm_config.kv_transfer_config, "transferred caches are not supported"
    yield model.runner_type != "generate", "only generating models are supported"
    yield model.is_hybrid or model.is_attention_free, "models with recurrent state do not work"
    yield model.is_encoder_decoder, "encoder-decoders are not supported"
    yield model.supports_multimodal_inputs, "models with other inputs than text are not supported"
    yield model.enable_sleep_mode, "sleeping, from which the draft wakes empty, is not supported"
    yield vllm_config.weight_transfer_config, "weights that change are not supported"
    yield model.enable_prompt_embeds, "prompt embeddings are not supported"
    yield "logits" in model.logprobs_mode, "logprobs_mode with logits is not supported"
    yield model.logits_processors, "logits processors of your own are not supported"


def _name(kind: Any) -> str:
    if kind is None or isinstance(kind, str):
        return str(kind)
    return f"{kind.__module__}.{kind.__qualname__}"
