"""Trees of drafted tokens on an accelerator: what wide passes cost, and trees beside chains."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

from cuda_models import Bench, Outcome, clock, decode_together, interleave, make_request, tokens_of
from cuda_speed import milliseconds, name_share, run_pass

from safedraft.core.config import DraftingConfig

ROWS = (1, 2, 4, 8, 16, 32, 64)
SHAPES = {
    "chain of 3": DraftingConfig(draft_tokens=3),
    "chain of 7": DraftingConfig(draft_tokens=7),
    "tree 3-2-1-1-1-1": DraftingConfig().with_tree("3-2-1-1-1-1"),
    "tree 4-3-2-1-2-1-1-1-1-1": DraftingConfig().with_tree("4-3-2-1-2-1-1-1-1-1"),
    "grown, 15 nodes": DraftingConfig(
        draft_tokens=15, draft_tree_threshold=0.05, draft_tree_stop=0.1
    ),
}


def measure_trees(bench: Bench, outcome: Outcome) -> None:
    """Passes of 1 to 64 rows, and SSD and Sequoia with chains and trees: tokens and speed."""
    outcome.figures |= {which: _time_rows(bench, which) for which in ("target", "draft")}
    for share in bench.large.shares[:2] or (None,):
        if share is not None:
            bench.large.agree(share)
        for rule in ("ssd", "sequoia"):
            _race(bench, rule, f"{name_share(share)}, {rule}", outcome)


def _time_rows(bench: Bench, which: Any) -> dict[str, float]:
    """Milliseconds of a pass of so many rows after the shortest context."""
    context = bench.workload.contexts[0]
    (prompt,) = bench.large.prompts(1, context + max(ROWS))
    session = bench.large.engine().session(which)
    session.forward(prompt[:context], 1)
    times = {}
    for rows in ROWS:
        action = partial(run_pass, session, prompt[:rows], rows, rows)
        action()
        taken = [clock(action, bench.device)[1] for _ in range(bench.workload.passes)]
        times[f"{rows} rows, ms"] = milliseconds(median(taken))
    return times


def _race(bench: Bench, rule: str, name: str, outcome: Outcome) -> None:
    """Decode one prompt with every shape in turn; greedy replies must not differ."""
    pair = bench.large
    (prompt,) = pair.prompts(1, bench.workload.prompt)
    tokens = bench.workload.replies[1]
    requests = {
        shape: make_request(rule, prompt, dict(config), max_new_tokens=tokens)
        for shape, config in SHAPES.items()
    }
    steps = {
        shape: decode_together(pair.engine(), [request])[0] for shape, request in requests.items()
    }
    chain = tokens_of(steps["chain of 3"])
    for shape, own in steps.items():
        outcome.require(tokens_of(own) == chain, f"{name}: {shape} says other tokens")
    actions = {
        shape: partial(decode_together, pair.engine(), [request])
        for shape, request in requests.items()
    }
    times = interleave(actions, bench.device, bench.workload.seconds)
    outcome.figures[name] = {
        shape: {
            "tokens_per_pass": round(len(own) / (own[-1].block + 1), 2),
            "tokens_per_second": round(len(own) / median(times[shape]), 2),
        }
        for shape, own in steps.items()
    }
