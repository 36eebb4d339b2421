"""Options by their names in other libraries: synonyms, and options without effect."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any, TypedDict

from safedraft.core.errors import SafeDraftError, show_value
from safedraft.core.plugins import suggest

SYNONYMS = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "stop_strings": "stop",
    "eos_token_id": "stop_token_ids",
}
"""SafeDraft's name of an option by its name in vLLM, Transformers or OpenAI's API."""

NEUTRAL: dict[str, Any] = {
    "n": 1,
    "best_of": 1,
    "num_return_sequences": 1,
    "num_beams": 1,
    "num_beam_groups": 1,
    "use_beam_search": False,
    "early_stopping": False,
    "encoder_repetition_penalty": 1,
    "length_penalty": 1,
    "diversity_penalty": 0,
    "penalty_alpha": 0,
    "no_repeat_ngram_size": 0,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "min_tokens": 0,
    "min_new_tokens": 0,
    "min_length": 0,
    "ignore_eos": False,
    "bad_words": [],
    "bad_words_ids": [],
    "logits_processor": [],
    "logits_processors": [],
    "detokenize": True,
    "skip_special_tokens": True,
    "include_stop_str_in_output": False,
}
"""The value with which an option that SSD does not support has no effect."""

WITHOUT_EFFECT = ("use_tqdm", "use_cache", "pad_token_id", "spaces_between_special_tokens")
"""Options that change no reply, whatever their value."""

INSTEAD = {
    "n": "give the prompt several times, in a list",
    "best_of": "give the prompt several times, in a list",
    "num_return_sequences": "give the prompt several times, in a list",
    "max_length": "it counts the prompt too: give max_new_tokens",
    "logprobs": "give top_logprobs to generate, the number of alternatives",
    "top_logprobs": "give it to generate, beside the sampling parameters",
    "response_format": "give structured_outputs={'json_schema': …}",
    "guided_json": "give structured_outputs={'json_schema': …}",
    "guided_regex": "give structured_outputs={'regex': …}",
    "guided_choice": "give structured_outputs={'choice': […]}",
    "guided_grammar": "give structured_outputs={'grammar': …}",
}
"""The alternative to an option, if it is not enough to leave it out."""

NEUTRAL_IN_LOADING: dict[str, Any] = {
    "trust_remote_code": False,
    "use_safetensors": True,
    "low_cpu_mem_usage": True,
}
"""The value with which an option of ``from_pretrained`` has no effect on how a pair is loaded."""

_FOR_VLLM = "it is an option of vLLM: add engine='vllm' (--engine vllm)"

INSTEAD_IN_LOADING = {
    "revision": "name it with the model, as owner/name@revision",
    "token": "set the environment variable HF_TOKEN",
    "cache_dir": "set the environment variable SAFEDRAFT_CACHE",
    "local_files_only": "set the environment variable HF_HUB_OFFLINE",
    "trust_remote_code": "models that bring their own code are refused: leave it out",
    "use_safetensors": "pickled weights are refused: leave it out",
    "low_cpu_mem_usage": "leave it out",
    "load_in_4bit": "give quantization_config=BitsAndBytesConfig(load_in_4bit=True)",
    "load_in_8bit": "give quantization_config=BitsAndBytesConfig(load_in_8bit=True)",
    "tokenizer": "load the models yourself and give them to Pair.from_models",
    "draft_tokens_up_to": _FOR_VLLM,
    "tensor_parallel_size": _FOR_VLLM,
    "gpu_memory_utilization": _FOR_VLLM,
    "max_model_len": _FOR_VLLM,
    "max_num_seqs": _FOR_VLLM,
    "enforce_eager": _FOR_VLLM,
}
"""The alternative to an option of loading."""

_PARAMETERS = ("adapter", "use_adapter", "template", "template_from", "other_base", "config")
"""Parameters of ``load_pair`` that a misspelt option of loading may mean."""


class SamplingOptions(TypedDict, total=False):
    """Keywords of ``generate``, each of which replaces a field of ``sampling`` unless it is None.

    The names below the first thirteen are those of other libraries: synonyms, and options that are
    accepted with the value that has no effect.
    """

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: int | Sequence[int] | None
    structured_outputs: Any
    max_tokens: int | None
    max_completion_tokens: int | None
    stop_strings: str | Sequence[str] | None
    eos_token_id: int | Sequence[int] | None
    do_sample: bool | None
    n: int | None
    best_of: int | None
    num_return_sequences: int | None
    num_beams: int | None
    num_beam_groups: int | None
    use_beam_search: bool | None
    early_stopping: bool | None
    encoder_repetition_penalty: float | None
    length_penalty: float | None
    diversity_penalty: float | None
    penalty_alpha: float | None
    no_repeat_ngram_size: int | None
    typical_p: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    min_tokens: int | None
    min_new_tokens: int | None
    min_length: int | None
    ignore_eos: bool | None
    bad_words: Sequence[str] | None
    bad_words_ids: Sequence[Sequence[int]] | None
    logits_processor: Sequence[Any] | None
    logits_processors: Sequence[Any] | None
    detokenize: bool | None
    skip_special_tokens: bool | None
    spaces_between_special_tokens: bool | None
    include_stop_str_in_output: bool | None
    use_tqdm: bool | None
    use_cache: bool | None
    pad_token_id: int | None


def translate(
    options: Mapping[str, Any], fields: Collection[str], temperature: float = 0.0
) -> dict[str, Any]:
    """Options under SafeDraft's own names, without those that have no effect.

    Args:
        options: as a caller named them. A None means that the option was not given.
        fields: SafeDraft's own names; an unknown name is kept, and refused later.
        temperature: the temperature that ``do_sample=True`` keeps, if it is not 0.

    Raises:
        SafeDraftError: a value would change what is decided in a way that SSD does not support, or
            two options contradict each other.
    """
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, value in options.items():
        own = SYNONYMS.get(name, name)
        if own not in fields and _is_dropped(name, value):
            continue
        if value is None and own in (*fields, "do_sample"):
            continue
        if own in names:
            first, second = sorted((names[own], name), key=lambda given: given != own)
            raise SafeDraftError(f"give {first} or {second}, which mean the same, not both")
        names[own] = name
        values[own] = 0 if own == "top_k" and value == -1 else value
    if "do_sample" in values:
        values["temperature"] = _choose_temperature(values, temperature)
        del values["do_sample"]
    return values


def _is_dropped(name: str, value: Any) -> bool:
    """Whether an option that SSD does not support has a value without effect.

    Raises:
        SafeDraftError: the value would have an effect.
    """
    if name in WITHOUT_EFFECT:
        return True
    if name not in NEUTRAL and name not in INSTEAD:
        return False
    if value is None or (name in NEUTRAL and _equal(value, NEUTRAL[name])):
        return True
    instead = INSTEAD.get(name, "leave it out")
    raise SafeDraftError(f"{name}={show_value(value)} is not supported with SSD: {instead}")


def _equal(value: Any, neutral: Any) -> bool:
    if isinstance(neutral, list):
        return isinstance(value, Sequence) and not isinstance(value, str) and not value
    return type(value) in (type(neutral), int, float) and bool(value == neutral)


def _choose_temperature(values: Mapping[str, Any], kept: float) -> Any:
    """The temperature that ``do_sample`` means, as in Transformers.

    Raises:
        SafeDraftError: ``do_sample`` is not a truth value, or contradicts the temperature.
    """
    sample, named = values["do_sample"], values.get("temperature")
    if not isinstance(sample, bool):
        raise SafeDraftError(f"do_sample: must be true or false, not {show_value(sample)}")
    if not sample and named:
        raise SafeDraftError(
            f"do_sample=False is greedy, and temperature={show_value(named)} is not: "
            "leave one of them out"
        )
    if sample and named == 0:
        raise SafeDraftError(
            "do_sample=True samples, and temperature=0 is greedy: leave one of them out"
        )
    if not sample:
        return 0.0
    return named if named is not None else kept or 1.0


def choose_options(
    load: Callable[..., Any], options: Mapping[str, Any], place: str
) -> dict[str, Any]:
    """Keep the options that a loader takes, and drop options of other loaders without effect.

    Args:
        load: the loader; its options are its keyword-only parameters.
        options: the options that a caller named. None means that an option was not given.
        place: the name of the loader, for the error message.

    Raises:
        SafeDraftError: an option is unknown to the loader; the message lists its options.
    """
    parameters = signature(load).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is Parameter.KEYWORD_ONLY]
    takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters)
    arguments = {parameter.name for parameter in parameters} - {*known}
    chosen: dict[str, Any] = {}
    for name, value in options.items():
        if name in known:
            chosen |= {} if value is None else {name: value}
        elif takes_all and name not in arguments:
            chosen[name] = value
        elif name not in NEUTRAL_IN_LOADING or value not in (None, NEUTRAL_IN_LOADING[name]):
            raise _unknown_option(place, name, known)
    return chosen


def _unknown_option(place: str, name: str, known: Sequence[str]) -> SafeDraftError:
    if instead := INSTEAD_IN_LOADING.get(name):
        return SafeDraftError(f"{place}: {name}: {instead}")
    meant = get_close_matches(name, _PARAMETERS, n=1, cutoff=0.75)
    own = f" (load_pair has {meant[0]!r})" if meant else ""
    names = suggest(name, known) if known else "; there are none"
    return SafeDraftError(f"{place}: no option is called {name!r}{own}{names}")
