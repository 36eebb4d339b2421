"""SSD inside Transformers' own ``generate``.

>>> draft = safedraft.merge_adapter(draft, "path/to/adapter")  # a bare draft guards nothing
>>> target.generate(**inputs, custom_generate=safedraft.ssd_generate, draft_model=draft)
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.core.decode import decode
from safedraft.core.errors import SafeDraftError
from safedraft.core.request import Request
from safedraft.engines.base import Capability
from safedraft.engines.transformers.engine import TransformersEngine
from safedraft.engines.transformers.unwrap import (
    require_adapters_in_layers,
    require_in_memory,
    unwrap,
)
from safedraft.models.description import ModelDescription
from safedraft.rules.ssd import SSD

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        LogitsProcessorList,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        StoppingCriteriaList,
    )

_SAMPLING = {
    *("TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper"),
    "RepetitionPenaltyLogitsProcessor",
}
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_PREPARED = {"attention_mask", "position_ids", "past_key_values", "logits_to_keep", "use_cache"}
"""Arguments that ``generate`` passes in any case."""
_OTHER_MODES = (
    "prompt_lookup_num_tokens",
    "penalty_alpha",
    "dola_layers",
    "cache_implementation",
    "force_words_ids",
    "constraints",
    "use_mtp",
    "speculation_type",
    "assistant_early_exit",
    "token_healing",
)

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Signature(inspect.Signature):
    """A signature with ``tokenizer`` in it, which ``generate`` then passes on.

    ``generate`` takes ``tokenizer`` out of its arguments before it looks for those that a custom
    decoding method names, so that it finds no tokenizer for ``stop_strings`` and raises. It reads
    the method's parameters in between, and the tokenizer is put back there.
    """

    @property
    def parameters(self) -> Any:
        frame = sys._getframe(1)
        if frame.f_code.co_name == "_extract_generation_mode_kwargs":
            taken = frame.f_locals.get("generation_mode_kwargs") or {}
            remaining = frame.f_locals.get("kwargs")
            if "tokenizer" in taken and isinstance(remaining, dict):
                remaining.setdefault("tokenizer", taken["tokenizer"])
        return super().parameters


def _with_tokenizer(function: _Function) -> _Function:
    parameters = inspect.signature(function).parameters.values()
    function.__signature__ = _Signature(list(parameters))  # type: ignore[attr-defined]
    return function


@_with_tokenizer
def ssd_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    draft_model: nn.Module | None = None,
    draft_input_ids: Tensor | None = None,
    ssd_config: SSDConfig | None = None,
    seed: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **model_kwargs: Any,
) -> Any:
    """Pass as ``custom_generate=`` to ``model.generate``; ``model`` is the target.

    ``max_new_tokens``, ``do_sample``, ``temperature``, ``top_k``, ``top_p``, ``min_p``,
    ``repetition_penalty``, end tokens, stop strings, ``streamer`` and ``stopping_criteria`` work as
    in ``generate``, token by token.

    Args:
        model: the target.
        input_ids: ``[1, length]``.
        logits_processor: those of ``generate``; those of the options above work.
        stopping_criteria: evaluated after every token.
        generation_config: as ``generate`` prepared it.
        draft_model: the deep-aligned draft; it shares the target's vocabulary. A PEFT model takes
            part with its adapters, and a compiled or parallel module as what is inside it.
        draft_input_ids: the draft's own prompt ``[1, length]``, if it differs.
        ssd_config: the constants, the published ones by default; no ``prefill_scheme``.
        seed: the seed of a sampled reply; drawn from torch's generator by default.
        tokenizer: tokenizer of the target, with which ``generate`` finds ``stop_strings``.
        model_kwargs: the remaining arguments of ``generate``.

    Returns:
        Ids ``[1, length + new]``, or a ``GenerateDecoderOnlyOutput`` with them.

    Raises:
        SafeDraftError: an option is not supported with SSD, or the draft cannot be decoded with.
    """
    if draft_model is None:
        raise SafeDraftError("SSD needs draft_model=…, the small model that carries the safety")
    draft = unwrap(draft_model, "draft_model")
    require_in_memory(model, "the target")
    require_adapters_in_layers(model, "the target")
    _require_supported(input_ids, logits_processor, generation_config, model_kwargs)
    streamer = _find_argument("streamer")
    prompt: list[int] = input_ids[0].tolist()
    own_prompt = _read_draft_prompt(draft_input_ids, input_ids, draft)
    room = _count_room(generation_config.max_length, prompt, own_prompt, model, draft)
    sampling = _read_sampling(generation_config, room, seed)
    config = _read_config(ssd_config)
    request = Request(prompt, own_prompt, SSD(), config, sampling)
    vocabulary = min(one.config.get_text_config().vocab_size for one in (model, draft))
    engine = TransformersEngine(model, draft, vocabulary)
    if config.branches:
        engine.capabilities.require(Capability.TREES, config.branches)
    sequence = input_ids
    for _, step in decode(engine, [request]):
        token = torch.tensor([[step.token]], device=input_ids.device)
        sequence = torch.cat([sequence, token], dim=-1)
        if streamer is not None:
            streamer.put(token[0].cpu())
        if stopping_criteria(sequence, None).all():
            break
    if streamer is not None:
        streamer.end()
    if generation_config.return_dict_in_generate:
        from transformers.generation import GenerateDecoderOnlyOutput

        return GenerateDecoderOnlyOutput(sequences=sequence)
    return sequence


def _read_config(config: Any) -> SSDConfig:
    if config is None:
        return SSDConfig()
    if not isinstance(config, SSDConfig):
        kind = type(config).__name__
        raise SafeDraftError(f"ssd_config must be a safedraft.SSDConfig(…), not a {kind}")
    return config


def _read_draft_prompt(own: Any, shared: Tensor, draft: PreTrainedModel) -> list[int]:
    ids = shared if own is None else own
    if not isinstance(ids, Tensor):
        how = "give its ['input_ids']" if isinstance(ids, Mapping) else "give ids [1, length]"
        kind = type(ids).__name__
        raise SafeDraftError(f"draft_input_ids must be a tensor, not a {kind}: {how}")
    if ids.is_floating_point():
        raise SafeDraftError(f"draft_input_ids must hold token ids, not {ids.dtype}")
    rows = draft.get_input_embeddings().num_embeddings
    if ids.ndim != 2 or ids.shape[0] != 1 or not ids.numel():
        raise SafeDraftError(f"the draft's prompt must be [1, length], not {list(ids.shape)}")
    if not bool(((ids >= 0) & (ids < rows)).all()):
        raise SafeDraftError(f"the draft's prompt has ids outside its vocabulary of {rows}")
    prompt: list[int] = ids[0].tolist()
    return prompt


def _count_room(
    max_length: int,
    prompt: list[int],
    own_prompt: list[int],
    target: PreTrainedModel,
    draft: PreTrainedModel,
) -> int:
    """Return how many new tokens ``max_length`` and both models' contexts leave room for.

    A context ends where rotary factors change with the length, as ``ModelDescription`` has it.
    """
    room = max_length - len(prompt)
    if room < 1:
        raise SafeDraftError(f"the prompt has {len(prompt)} tokens: no room for a new one")
    for name, model, ids in (("target", target, prompt), ("draft", draft, own_prompt)):
        context = ModelDescription(name, model.config, None, None).context_length
        if context and len(ids) >= context:
            raise SafeDraftError(
                f"the {name}'s prompt has {len(ids)} tokens, its context {context}"
            )
        room = min(room, context - len(ids)) if context else room
    return room


def _read_sampling(generation: GenerationConfig, room: int, seed: int | None) -> SamplingParams:
    own = {"max_new_tokens": room, "repetition_penalty": generation.repetition_penalty}
    if not generation.do_sample:
        return SamplingParams(**own)
    if seed is None:
        seed = int(torch.randint(2**62, ()))  # follows torch.manual_seed, as generate() does
    return SamplingParams(
        **own,
        temperature=1.0 if generation.temperature is None else generation.temperature,
        top_k=generation.top_k or 0,
        top_p=1.0 if generation.top_p is None else generation.top_p,
        min_p=generation.min_p or 0.0,
        seed=seed,
    )


def _require_supported(
    input_ids: Tensor,
    processors: LogitsProcessorList,
    generation: GenerationConfig,
    model_kwargs: dict[str, Any],
) -> None:
    """Reject options that would otherwise be accepted and ignored."""
    if generation.num_beams not in (None, 1):
        raise SafeDraftError("SSD has no beam search: leave num_beams at 1")
    if input_ids.shape[0] != 1:
        raise SafeDraftError("SSD decodes one sequence at a time: call generate once for each")
    mask = model_kwargs.get("attention_mask")
    if mask is not None and not bool((mask == 1).all()):
        raise SafeDraftError("SSD takes a prompt without padding: drop the padded tokens")
    others = sorted({type(processor).__name__ for processor in processors} - _SAMPLING)
    own = _find_argument("logits_processor") or ()
    others += [type(processor).__name__ for processor in own]
    if others:
        raise SafeDraftError(f"SSD does not support {', '.join(others)}: switch the option off")
    unsupported = [name for name in _OUTPUTS if getattr(generation, name, False)]
    unsupported += [
        name for name in _OTHER_MODES if getattr(generation, name, None) not in (None, False)
    ]
    unsupported += [
        name for name, value in model_kwargs.items() if name not in _PREPARED and _is_set(value)
    ]
    if _find_argument("assistant_model") is not None:
        unsupported.append("assistant_model (the draft is draft_model)")
    if _find_argument("synced_gpus"):
        unsupported.append("synced_gpus")
    if model_kwargs.get("use_cache") is False:
        unsupported.append("use_cache=False")
    positions = model_kwargs.get("position_ids")
    if positions is not None and positions[0].tolist() != list(range(input_ids.shape[1])):
        unsupported.append("position_ids")
    if unsupported:
        raise SafeDraftError(f"SSD does not support {', '.join(unsupported)}: leave it out")
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise SafeDraftError("SSD starts from an empty cache: leave out past_key_values")


def _is_set(value: Any) -> bool:
    return value.numel() > 0 if isinstance(value, Tensor) else bool(value)


def _find_argument(name: str) -> Any:
    """Find an argument of the calling ``generate``; None if there is none.

    ``generate`` does not pass its own parameters to a custom decoding method, although it gives the
    prompt to a ``streamer`` and leaves the rest to that method. Without a look at its frame, a
    streamer would wait forever, and other arguments would be ignored silently.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "generate":
        frame = frame.f_back  # type: ignore[assignment]
    return frame.f_locals.get(name) if frame is not None else None
