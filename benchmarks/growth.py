"""Does decoding slow down as the context grows? Tokens per second after 100 and 1,500 tokens.

The same question is asked after a short and a long piece of ordinary text, in turn; the time of
the prefill is left out. Prints medians, their ratio, and what a block costs, which is free of how
often the two models happen to agree.
"""

from __future__ import annotations

import argparse
import json
import statistics

import safedraft
from safedraft.evaluation.benchmark import machine

FILLER = (
    "The museum opens at nine and closes at six. Its oldest hall holds maps, its newest one "
    "instruments. Visitors may take photographs without a flash. "
)
QUESTION = (
    "Now forget the museum and write a Python function that checks whether a number is prime."
)


def prompt_of(pair: safedraft.Pair, length: int) -> str:
    """The question after as much filler as makes the target's prompt about ``length`` tokens."""
    text = QUESTION
    while len(pair.prompts([{"role": "user", "content": text}]).target) < length:
        text = FILLER + text
    return text


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--contexts", type=int, nargs=2, default=[100, 1500])
    options.add_argument("--max-new-tokens", type=int, default=64)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()

    pair = safedraft.load_pair()
    prompts = {length: prompt_of(pair, length) for length in given.contexts}
    sampling = safedraft.SamplingParams(max_new_tokens=given.max_new_tokens)
    speeds: dict[int, list[float]] = {length: [] for length in prompts}
    blocks: dict[int, list[float]] = {length: [] for length in prompts}
    for turn in range(given.rounds + 1):
        for length, prompt in prompts.items():
            figures = pair.generate(prompt, sampling=sampling).statistics
            seconds = figures.seconds - figures.first_token_seconds
            if turn:  # the first round warms up
                speeds[length].append((figures.tokens - 1) / seconds)
                blocks[length].append(seconds / (figures.blocks - 1))
    short, long = given.contexts
    medians = {length: statistics.median(values) for length, values in speeds.items()}
    outcome = {
        "tokens_per_second": medians,
        "ratio": medians[long] / medians[short],
        "seconds_per_block": {length: statistics.median(v) for length, v in blocks.items()},
        "machine": machine(),
    }
    print(json.dumps(outcome, indent=1))


if __name__ == "__main__":
    main()
