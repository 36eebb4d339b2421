"""SSD inside Transformers' own ``generate``.

>>> target.generate(**inputs, custom_generate=safedraft.ssd_generate, draft_model=draft)
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safedraft.config import SamplingParams, SSDConfig
from safedraft.decode import decode
from safedraft.engines.transformers import TransformersSession
from safedraft.errors import SafeDraftError

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        LogitsProcessorList,
        PreTrainedModel,
        StoppingCriteriaList,
    )

_SAMPLING = {"TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper"}
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_REFUSED = ("inputs_embeds", "encoder_outputs", "decoder_input_ids")


def ssd_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    draft_model: PreTrainedModel | None = None,
    draft_input_ids: Tensor | None = None,
    ssd_config: SSDConfig | None = None,
    seed: int | None = None,
    **model_kwargs: Any,
) -> Any:
    """Pass as ``custom_generate=`` to ``model.generate``; ``model`` is the target.

    ``max_new_tokens``, ``do_sample``, ``temperature``, ``top_k``, ``top_p``, end tokens, stop
    strings, ``streamer`` and ``stopping_criteria`` work as they do there, token by token.

    Args:
        model: the target.
        input_ids: ``[1, length]``.
        logits_processor: those of ``generate``; only temperature, top-k and top-p can be honoured.
        stopping_criteria: asked after every token.
        generation_config: as ``generate`` prepared it.
        draft_model: the deep-aligned draft; it shares the target's vocabulary.
        draft_input_ids: the draft's own prompt ``[1, length]``, if it differs.
        ssd_config: the published constants when not given.
        seed: repeats a sampled reply; drawn from torch's generator when not given.
        model_kwargs: what else ``generate`` hands over.

    Returns:
        ``[1, length + new]``, or a ``GenerateDecoderOnlyOutput`` of it.

    Raises:
        SafeDraftError: an option that SSD cannot honour.
    """
    if draft_model is None:
        raise SafeDraftError("SSD needs draft_model=…, the small model that carries the safety")
    _refuse(input_ids, logits_processor, generation_config, model_kwargs)
    streamer = _streamer_of_caller()
    vocabulary = min(m.config.get_text_config().vocab_size for m in (model, draft_model))
    prompt = input_ids[0].tolist()
    room = generation_config.max_length - len(prompt)
    if room < 1:
        raise SafeDraftError(f"the prompt has {len(prompt)} tokens: no room for a new one")
    sequence = input_ids
    steps = decode(
        TransformersSession(model, "target", vocabulary),
        TransformersSession(draft_model, "draft", vocabulary, model.device),
        prompt,
        prompt if draft_input_ids is None else draft_input_ids[0].tolist(),
        ssd_config or SSDConfig(),
        _sampling(generation_config, room, seed),
    )
    for step in steps:
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


def _sampling(generation: GenerationConfig, room: int, seed: int | None) -> SamplingParams:
    if not generation.do_sample:
        return SamplingParams(max_new_tokens=room)
    if seed is None:
        seed = int(torch.randint(2**62, ()))  # follows torch.manual_seed, as generate() does
    return SamplingParams(
        max_new_tokens=room,
        temperature=1.0 if generation.temperature is None else generation.temperature,
        top_k=generation.top_k or 0,
        top_p=generation.top_p or 1.0,
        seed=seed,
    )


def _refuse(
    input_ids: Tensor,
    processors: LogitsProcessorList,
    generation: GenerationConfig,
    model_kwargs: dict[str, Any],
) -> None:
    """Raise on what would otherwise be accepted and ignored."""
    if generation.num_beams not in (None, 1):
        raise SafeDraftError("SSD has no beam search: leave num_beams at 1")
    if input_ids.shape[0] != 1:
        raise SafeDraftError("SSD decodes one sequence at a time: call generate once for each")
    others = sorted({type(processor).__name__ for processor in processors} - _SAMPLING)
    if others:
        raise SafeDraftError(f"SSD cannot honour {', '.join(others)}: switch the option off")
    asked = [name for name in _OUTPUTS if getattr(generation, name, False)]
    asked += [name for name in _REFUSED if model_kwargs.get(name) is not None]
    if asked:
        raise SafeDraftError(f"SSD cannot honour {', '.join(asked)}: leave it out")
    mask = model_kwargs.get("attention_mask")
    if mask is not None and not bool((mask == 1).all()):
        raise SafeDraftError("SSD takes a prompt without padding: drop the padded tokens")
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise SafeDraftError("SSD starts from an empty cache: leave out past_key_values")


def _streamer_of_caller() -> Any:
    """``generate``'s own ``streamer``, which it keeps from every callable.

    It tells the streamer the prompt and leaves the rest to the decoding method, but hands a
    callable only names that it does not know itself. Without this a listener would wait for ever.
    """
    frame = sys._getframe(2)
    return frame.f_locals.get("streamer") if frame.f_code.co_name == "generate" else None
