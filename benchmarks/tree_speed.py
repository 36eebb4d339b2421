"""A pair's chain of drafts beside trees of several shapes: speed, and whether replies are equal.

Replies are greedy, one after the other, and each prompt is decoded with every shape before the next
one. Seconds are wall-clock time and the processor time of this process; the latter is the better
measure on a machine that is not idle.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from tree_prize import REFUSALS, read_prompts

import safedraft
from safedraft.core.config import SamplingParams
from safedraft.evaluation.benchmark import machine

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "chain": {},
    "beside the chain": {"draft_tree_threshold": 0.12},
    "static tree (6 nodes)": {
        "draft_tree": (2, 1, 1, 1, 1),
        "draft_confidence": 0.0,
        "draft_tokens": 6,
        "draft_growth": 0.0,
    },
    "grown tree": {
        "draft_tree_threshold": 0.12,
        "draft_tree_stop": 0.3,
        "draft_confidence": 0.0,
        "draft_tokens": 8,
    },
}
"""Constants of each shape, in place of the pair's own."""


@dataclass
class Total:
    """What one shape took for all prompts."""

    tokens: int = 0
    blocks: int = 0
    draft_passes: int = 0
    wall: float = 0.0
    processor: float = 0.0
    equal: int = 0
    """Number of replies with the tokens of the chain's."""


def measure(pair: safedraft.Pair, texts: list[str], tokens: int) -> dict[str, Total]:
    """Decode every prompt with every shape; the first shape once more before, to warm up."""
    totals = {name: Total() for name in SHAPES}
    sampling = SamplingParams(max_new_tokens=tokens)
    pair.generate(texts[0], sampling)
    for number, text in enumerate(texts):
        replies = {}
        names = list(SHAPES)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            config = pair.config.replace(**SHAPES[name])
            wall, processor = time.perf_counter(), time.process_time()
            result = pair.generate(text, sampling, config=config)
            total = totals[name]
            total.wall += time.perf_counter() - wall
            total.processor += time.process_time() - processor
            total.tokens += len(result.trace)
            total.blocks += result.statistics.blocks
            total.draft_passes += result.statistics.draft_passes
            replies[name] = [token.id for token in result.trace]
        for name, reply in replies.items():
            totals[name].equal += reply == replies["chain"]
    return totals


def show(console: Console, totals: Mapping[str, Total], prompts: int) -> None:
    """Print a row for each shape."""
    table = Table(box=None)
    table.add_column("shape")
    for heading in (
        "tokens",
        "tokens/s",
        "tokens/processor s",
        "tokens/pass of the target",
        "passes of the draft",
        "replies as the chain's",
    ):
        table.add_column(heading, justify="right")
    for name, total in totals.items():
        table.add_row(
            name,
            str(total.tokens),
            f"{total.tokens / total.wall:.2f}",
            f"{total.tokens / total.processor:.2f}",
            f"{total.tokens / total.blocks:.2f}",
            str(total.draft_passes),
            f"{total.equal} of {prompts}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", help="a registered pair; the default one if none is named")
    parser.add_argument("--engine", default="cpu")
    parser.add_argument("--limit", type=int, default=2, help="prompts of each kind")
    parser.add_argument("--tokens", type=int, default=64, help="of a reply, at most")
    given = parser.parse_args()
    pair = safedraft.load_pair(given.pair, engine=given.engine)
    kinds = read_prompts(given.limit)
    texts = [text for kind, some in kinds.items() if kind != REFUSALS for text in some]
    console = Console(highlight=False, width=140)
    show(console, measure(pair, texts, given.tokens), len(texts))
    console.print(f"{len(texts)} prompts; {pair!r}; {machine()}")


if __name__ == "__main__":
    main()
