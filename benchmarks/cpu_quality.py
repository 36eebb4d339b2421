"""How far the engine cpu's target and draft are from the same weights in 16 bits, on real text.

Texts are the beginnings of SafeDraft's own pages and modules, and its everyday prompts. Prints for
each model and dtype the mean total variation between the distributions of the next token, how
often the most likely token is the same, and the perplexity of the text. bfloat16 of Transformers
is the reference, and float32 shows what bfloat16 itself rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import safedraft
from safedraft.core.session import Pass, Which
from safedraft.evaluation.benchmark_prompts import PROMPTS

ROOT = Path(__file__).parent.parent
FILES = "docs/method.md", "docs/server.md", "src/safedraft/core/decode.py", "README.md"

REFERENCE: dict[str, Any] = {"engine": "transformers", "dtype": "bfloat16"}
COMPARED: dict[str, dict[str, Any]] = {
    "float32": {"engine": "transformers", "dtype": "float32"},
    "int8": {"engine": "cpu", "dtype": "int8"},
    "int4": {"engine": "cpu", "dtype": "int4"},
}


def read_texts(pair: safedraft.Pair, length: int) -> list[list[int]]:
    """Token ids, of each text at most so many."""
    texts = [(ROOT / file).read_text(encoding="utf-8") for file in FILES]
    texts.append("\n\n".join(PROMPTS))
    tokenizer: Any = pair.target.tokenizer
    return [tokenizer(text)["input_ids"][:length] for text in texts]


def ask(pair: safedraft.Pair, which: Which, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Log probabilities after every token of each text."""
    engine: Any = pair.engine
    return [
        engine.forward([Pass(engine.session(which), ids, len(ids))])[0].log_softmax(-1)
        for ids in texts
    ]


def compare(
    reference: Sequence[Tensor], other: Sequence[Tensor], texts: Sequence[Sequence[int]]
) -> tuple[float, float, float]:
    """Mean total variation, share of equal most likely tokens, and perplexity of ``other``."""
    pairs = list(zip(reference, other, strict=True))
    distance = torch.cat([(one.exp() - two.exp()).abs().sum(-1) / 2 for one, two in pairs])
    same = torch.cat([one.argmax(-1) == two.argmax(-1) for one, two in pairs])
    losses = [
        -two[:-1].gather(-1, torch.tensor(ids[1:])[:, None])
        for two, ids in zip(other, texts, strict=True)
    ]
    perplexity = float(torch.cat(losses).mean().exp())
    return float(distance.mean()), float(same.float().mean()), perplexity


def measure(length: int) -> Iterator[tuple[str, str, tuple[float, float, float]]]:
    """A model, a dtype and its figures; one pair is in memory at a time."""
    models: tuple[Which, ...] = get_args(Which)
    pair = safedraft.load_pair(**REFERENCE)
    texts = read_texts(pair, length)
    reference = {which: ask(pair, which, texts) for which in models}
    for which in models:
        yield which, "bfloat16", compare(reference[which], reference[which], texts)
    for name, options in COMPARED.items():
        pair = safedraft.load_pair(**options)
        for which in models:
            yield which, name, compare(reference[which], ask(pair, which, texts), texts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=256, help="most tokens of a text")
    given = parser.parse_args()
    table = Table("model", "dtype", "total variation", "same most likely", "perplexity", box=None)
    for which, name, (distance, same, perplexity) in measure(given.length):
        table.add_row(which, name, f"{distance:.4f}", f"{same:.3f}", f"{perplexity:.3f}")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
