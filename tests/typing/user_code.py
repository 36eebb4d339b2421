"""Code that a user could have written; ``test_typing`` checks it with ``mypy --strict``."""

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
    more = pair.generate(messages, sampling=sampling, config=constants, top_logprobs=2)
    try:
        pair.generate("hi", prefill="Sure,", chat_template_kwargs={"enable_thinking": False})
        pair.generate("hi", reasoning="Let me see.")
    except safedraft.PromptTooLongError as error:
        print(error.tokens, error.context_length)
    except safedraft.SafeDraftError as error:
        print(error)
    return reply.text + more.text + replies[0].text + f"{figures.match_ratio:.2f}"


version: str = safedraft.__version__
