"""What the engine cpu's passes cost beside a plain read of their weights.

For both models of the default pair: milliseconds of a pass of some rows, over those of reading the
weights once with as many threads (medians of interleaved rounds); the first token of a prompt of
200 tokens, here and with Transformers in bfloat16; eight requests together and one after the other;
seconds of loading, and the memory that the process holds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, get_args

import psutil
import torch
from rich.console import Console
from rich.table import Table

import safedraft
from safedraft.core.config import SamplingParams
from safedraft.core.session import Pass, Which
from safedraft.evaluation.benchmark import machine
from safedraft.evaluation.benchmark_prompts import PROMPTS
from safedraft.evaluation.trees.recording import time_in_turn

ROWS = 1, 2, 4, 8, 9, 16
PROMPT = list(range(1000, 1200))


def passes(engine: Any, which: Which) -> tuple[dict[str, Callable[[], Any]], int]:
    """A read of the weights and passes of ``ROWS``, and the bytes that they read."""
    session = engine.session(which)
    linears = session.decoder.packed.linears
    read = [linear.weights.view(-1).view(torch.int64) for linear in (*linears[:-2], linears[-1])]
    engine.forward([Pass(session, PROMPT, 1)])

    def run(rows: int) -> None:
        engine.forward([Pass(session, PROMPT[:rows], rows)])
        session.rewind(rows)

    actions: dict[str, Callable[[], Any]] = {"read": lambda: [weights.sum() for weights in read]}
    actions |= {str(rows): (lambda rows=rows: run(rows)) for rows in ROWS}
    return actions, sum(weights.nbytes for weights in read)


def first_token(pair: safedraft.Pair) -> Callable[[], Any]:
    """The target's pass over the prompt."""
    engine: Any = pair.engine
    return lambda: engine.forward([Pass(engine.session("target"), PROMPT, 1)])


def rates(pair: safedraft.Pair, rule: str, prompts: Sequence[str], length: int) -> list[float]:
    """Tokens per second of prompts one after the other, and together."""
    sampling = SamplingParams(max_new_tokens=length)
    found = []
    for together in (False, True):
        started = time.perf_counter()
        if together:
            replies = pair.generate_many(prompts, sampling=sampling, rule=rule)
        else:
            replies = [pair.generate(prompt, sampling=sampling, rule=rule) for prompt in prompts]
        tokens = sum(reply.statistics.tokens for reply in replies)
        found.append(tokens / (time.perf_counter() - started))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48, help="of each of eight replies")
    parser.add_argument("--draft-dtype", choices=("int8", "int4"), default="int8")
    given = parser.parse_args()
    console = Console(highlight=False)
    started = time.perf_counter()
    pair = safedraft.load_pair(engine="cpu", draft_dtype=given.draft_dtype)
    console.print(f"loaded in {time.perf_counter() - started:.1f} s")
    table = Table("model", "GB", "read, ms", *(f"{rows} rows" for rows in ROWS), box=None)
    for which in get_args(Which):
        actions, size = passes(pair.engine, which)
        times = time_in_turn(actions, given.rounds)
        ratios = (f"{times[str(rows)] / times['read']:.2f}" for rows in ROWS)
        table.add_row(which, f"{size / 1e9:.2f}", f"{times['read']:.1f}", *ratios)
    console.print(table)
    for rule in ("target_only", "ssd"):
        alone, together = rates(pair, rule, PROMPTS[:8], given.tokens)
        console.print(
            f"{rule}: eight requests at {alone:.1f} tokens/s one after the other and "
            f"{together:.1f} together ({together / alone:.2f})"
        )
    console.print(f"{psutil.Process().memory_info().rss / 1e9:.2f} GB resident")
    other = safedraft.load_pair(engine="transformers")
    times = time_in_turn({"cpu": first_token(pair), "bfloat16": first_token(other)}, given.rounds)
    console.print(
        f"first token after 200: {times['cpu']:.0f} ms, with Transformers in bfloat16 "
        f"{times['bfloat16']:.0f} ms"
    )
    console.print(machine())


if __name__ == "__main__":
    main()
