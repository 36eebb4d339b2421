"""Code that a user could have written; ``test_typing`` checks it with ``mypy --strict``."""

import warnings
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

import safedraft


def guard(model: PreTrainedModel, small: PreTrainedModel, tokenizer: Any) -> safedraft.Pair:
    return safedraft.Pair.from_models(
        model, small, tokenizer=tokenizer, guarded=True, template={"enable_thinking": False}
    )


def place(folder: Path) -> safedraft.Pair:
    return safedraft.load_pair(
        folder / "big",
        folder / "small",
        adapter=folder / "adapter",
        template={"enable_thinking": False},
        template_from="target",
        other_base=True,
        device_map="auto",
    )


def ask(folder: Path) -> str:
    pair: safedraft.Pair = safedraft.load_pair(folder / "big", folder / "small", use_adapter=False)
    reply: safedraft.GenerationResult = pair.generate(
        "Why is the sky blue?", system="Be brief.", max_tokens=20, temperature=0.7, stop="\n"
    )
    replies: list[safedraft.GenerationResult] = pair.generate(["one", "two"], max_new_tokens=5)
    messages = [{"role": "user", "content": "hi"}]
    stream: safedraft.Stream = pair.stream(messages, sampling={"seed": 1}, rule="ssd")
    for token in stream:
        origin: bool = token.matched
        print(token.text, origin, end="")
    figures: safedraft.Statistics = stream.result.statistics
    constants = safedraft.SSDConfig(alpha_union=2.0).replace(bin_size=5)
    sampling = safedraft.SamplingParams(max_new_tokens=9)
    form = safedraft.StructuredOutputs(choice=("yes", "no"))
    more = pair.generate(messages, sampling=sampling, config=constants, top_logprobs=2)
    pair.generate("hi", structured_outputs=form)
    try:
        pair.generate("hi", prefill="Sure,", chat_template_kwargs={"enable_thinking": False})
        pair.generate("hi", reasoning="Let me see.")
    except safedraft.PromptTooLongError as error:
        print(error.tokens, error.context_length)
    except safedraft.SafeDraftError as error:
        print(error)
    return reply.text + more.text + replies[0].text + f"{figures.match_ratio:.2f}"


def ask_as_elsewhere(pair: safedraft.Pair) -> list[str]:
    sampling = safedraft.SamplingParams(max_new_tokens=9, stop=("x",))
    one: safedraft.GenerationResult = pair.generate("hi", sampling, do_sample=False, logprobs=2)
    many: list[safedraft.GenerationResult] = pair.generate(
        ["hi", "ho"], [sampling, {"max_tokens": 3}], use_tqdm=False, n=1, repetition_penalty=1.0
    )
    more: list[safedraft.GenerationResult] = pair.generate_many(
        ["hi"], sampling, config=[{"alpha_union": 2.0}], eos_token_id=[3], stop_strings="y"
    )
    prompts: safedraft.Prompts = pair.text_prompts("Once upon a time")
    stream: safedraft.Stream = pair.stream_ids(prompts, {"seed": 1}, top_k=-1, temperature=None)
    same: safedraft.Stream = pair.stream_ids([1, 2], sampling_params=sampling)
    tokens: list[safedraft.Token] = [*stream, *same]
    others: list[safedraft.Alternative] = [
        other for token in tokens for other in token.top_logprobs
    ]
    parts: list[tuple[int, ...] | None] = [other.bytes for other in others]
    return [reply.text for reply in (one, *many, *more)] + [f"{parts}"]


def guard_with_risk(pair: safedraft.Pair) -> safedraft.RiskConfig:
    config = safedraft.RiskConfig(risky_above=0.9, prefill_scheme=safedraft.Scheme.UNION)
    pair.generate("hi", config=config, rule="risk")
    return config.model_copy(update={"alpha_union": 2.0})


def inside_transformers(target: Any, draft: PreTrainedModel, folder: Path, ids: Any) -> Any:
    merged: PreTrainedModel = safedraft.merge_adapter(draft, folder)
    constants = safedraft.SSDConfig(alpha_union=2.0)
    return target.generate(
        ids, custom_generate=safedraft.ssd_generate, draft_model=merged, ssd_config=constants
    )


def say_where(step: safedraft.Step) -> str:
    return f"{step.token} {step.matched} {step.block}"


def load_or_explain() -> safedraft.Pair | None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", safedraft.UnguardedWarning)
        try:
            return safedraft.load_pair("A", "B", "LORA", config={"alpha_union": 2.0}, dtype="half")
        except safedraft.IncompatiblePairError as error:
            print(error)
        except safedraft.BrokenModelError as error:
            print(error)
    return None


version: str = safedraft.__version__
