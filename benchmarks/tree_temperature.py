"""How many tokens a pass of the target decides at several temperatures: chains, trees, rounds.

Lossless speculation with the pair's draft: a chain, a static tree whose tokens are drawn first and
then looked up among the children, and the same tree with Sequoia's rounds (arXiv 2402.12374). No
time is measured, so that the machine need not be idle. All three give replies of the target's own
distribution, which differ where temperature is above 0.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

import safedraft
from safedraft.core.config import DraftingConfig, SamplingParams
from safedraft.evaluation.trees.tune import read_kinds

CHAIN = DraftingConfig(draft_tokens=6)
WAYS = {
    "chain of 6": ("speculative", False),
    "tree, drawn first": ("speculative", True),
    "tree, rounds": ("sequoia", True),
}
"""The rule of each way, and whether it drafts the tree."""


def measure(
    pair: safedraft.Pair, texts: Sequence[str], temperature: float, tokens: int, tree: str
) -> dict[str, list[float]]:
    """Tokens per pass of the target of each reply, by way."""
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for seed, text in enumerate(texts):
        sampling = SamplingParams(max_new_tokens=tokens, temperature=temperature, seed=seed)
        for name, (rule, branches) in WAYS.items():
            config = CHAIN.with_tree(tree) if branches else CHAIN
            result = pair.generate(text, sampling, rule=rule, config=config)
            found[name].append(len(result.trace) / result.statistics.blocks)
    return found


def show(figures: Sequence[float]) -> str:
    """Mean and standard error."""
    error = statistics.stdev(figures) / math.sqrt(len(figures))
    return f"{statistics.mean(figures):.2f} ± {error:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", help="a registered pair; the default one if none is named")
    parser.add_argument("--engine", default="cpu")
    parser.add_argument("--limit", type=int, default=3, help="prompts of each kind, at least 1")
    parser.add_argument("--tokens", type=int, default=48, help="of a reply, at most")
    parser.add_argument("--tree", default="3-2-1-1-1-0-1-1", help="as draft_tree is written")
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 0.3, 0.6, 1.0])
    given = parser.parse_args()
    pair = safedraft.load_pair(given.pair, engine=given.engine)
    texts = [text for some in read_kinds(given.limit).values() for text in some]
    table = Table("temperature", *WAYS, box=None)
    for temperature in given.temperature:
        found = measure(pair, texts, temperature, given.tokens, given.tree)
        table.add_row(f"{temperature:g}", *map(show, found.values()))
    console = Console(highlight=False, width=120)
    console.print(table)
    console.print(f"tokens per pass, {len(texts)} replies; tree {given.tree}; {pair!r}")


if __name__ == "__main__":
    main()
