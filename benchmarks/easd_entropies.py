"""How often EASD's trigger fires on a pair, by its threshold.

The pair answers prompts of the calibration half greedily, by its own rule: sums, everyday requests
by their category, and harmful requests, of which only the refused ones count. Both models read each
reply once more. Prints percentiles of the entropies of the target (P) and of the draft (q) and of
the overlap of their best tokens, and the share of positions that EASD (``safedraft.rules.easd``)
would penalize: those where both entropies are above a threshold, a column for each, and the overlap
is not below another one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

import safedraft
from safedraft.core.counts import format_count
from safedraft.core.rows import WIDTH, Ranked, rank
from safedraft.core.session import Pass
from safedraft.engines.base import Capability
from safedraft.evaluation.benchmark import machine
from safedraft.evaluation.trees.tune import read_kinds
from safedraft.pair.both_prompts import Prompts
from safedraft.prompts.phrases import is_refusal
from safedraft.rules.easd import EASDConfig
from safedraft.training.requests import read_own

PERCENTILES = 50, 75, 90, 95, 99
THRESHOLDS = 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0
OVERLAPS = 0.0, 0.4, 0.5, 0.6, 0.7, 0.8
"""Values of τ_O for which all kinds of text are counted together; 0 leaves the overlap out."""
REFUSALS = "refusals"
"""The kind of the replies that decline a harmful request; all others to those are left out."""


class Position(NamedTuple):
    """What EASD looks at where one token is chosen."""

    target: float
    """H(P) in nats."""
    draft: float
    """H(q) in nats."""
    overlap: int
    """Number of tokens that are among the N best of both models."""

    @property
    def smaller(self) -> float:
        """The smaller entropy: the trigger fires if it is above the threshold."""
        return min(self.target, self.draft)


def read_prompts(limit: int) -> dict[str, list[str]]:
    """Prompts of the calibration half by kind, the harmful ones last."""
    harmful = [request.text for request in read_own("calibration") if request.kind == "harmful"]
    return {**read_kinds(limit), REFUSALS: harmful[:limit]}


def read_positions(
    pair: safedraft.Pair, prompts: Prompts, ids: Sequence[int], count: int
) -> list[Position]:
    """The entropies of both models, and the overlap of ``count`` best tokens, along a reply."""
    engine: Any = pair.engine
    passes = [
        Pass(engine.session("target"), [*prompts.target, *ids[:-1]], len(ids)),
        Pass(engine.session("draft"), [*prompts.draft, *ids[:-1]], len(ids)),
    ]
    width = max(WIDTH, count)
    target, draft = (rank(rows, [0.0] * len(ids), width) for rows in engine.forward(passes))
    return [
        Position(target.entropy(row), draft.entropy(row), overlap(target, draft, row, count))
        for row in range(len(ids))
    ]


def overlap(target: Ranked, draft: Ranked, row: int, count: int) -> int:
    """Number of tokens that are among the ``count`` best of both models."""
    best = [set(side.tokens[row, :count].tolist()) for side in (target, draft)]
    return len(best[0] & best[1])


def record(
    pair: safedraft.Pair, prompts: Mapping[str, Sequence[str]], tokens: int, count: int
) -> Iterator[tuple[str, list[Position]]]:
    """The positions of each reply, with its kind."""
    for kind, texts in prompts.items():
        for number, text in enumerate(texts):
            print(f"{kind} {number + 1} of {len(texts)}", file=sys.stderr, flush=True)
            result = pair.generate(text, max_new_tokens=tokens)
            if kind != REFUSALS or is_refusal(result.text):
                ids = [token.id for token in result.trace]
                yield kind, read_positions(pair, pair.prompts(text), ids, count)


def penalized_share(positions: Sequence[Position], threshold: float, least: float) -> float:
    """The share of positions at which the trigger fires, with an overlap of at least ``least``."""
    fired = (one.smaller > threshold and one.overlap >= least for one in positions)
    return sum(fired) / len(positions)


def tabulate_percentiles(positions: Sequence[Position]) -> Table:
    """A line for each quantity; percentiles are interpolated."""
    made = Table(box=None, pad_edge=False)
    made.add_column("percentile")
    for percentile in PERCENTILES:
        made.add_column(str(percentile), justify="right")
    quantities = {
        "H(P), nats": [one.target for one in positions],
        "H(q), nats": [one.draft for one in positions],
        "the smaller of both": [one.smaller for one in positions],
        "tokens in common": [one.overlap for one in positions],
    }
    places = torch.tensor(PERCENTILES, dtype=torch.float64) / 100
    for name, values in quantities.items():
        found = torch.tensor(values, dtype=torch.float64).quantile(places).tolist()
        made.add_row(name, *(f"{value:.2f}" for value in found))
    return made


def tabulate_shares(
    replies: Sequence[tuple[str, Sequence[Position]]], count: int, own: float
) -> Table:
    """The share of penalized positions, a column for each threshold of entropy.

    Args:
        replies: the positions of each reply, with its kind.
        count: N, the number of best tokens whose overlap was counted.
        own: the threshold of the overlap, as a share of N, at which each kind has its line.
    """
    groups: dict[str, list[Position]] = {}
    for kind, positions in replies:
        groups.setdefault(kind, []).extend(positions)
    every = [one for _, positions in replies for one in positions]
    made = Table(box=None, pad_edge=False)
    for heading in ("penalized", "tokens", *map(str, THRESHOLDS)):
        made.add_column(heading, justify="left" if heading == "penalized" else "right")
    rows = [(f"all, overlap {share:g}", every, share) for share in OVERLAPS]
    rows += [(f"{kind}, overlap {own:g}", positions, own) for kind, positions in groups.items()]
    for name, positions, share in rows:
        shares = [penalized_share(positions, one, share * count) for one in THRESHOLDS]
        made.add_row(name, str(len(positions)), *(f"{found:.1%}" for found in shares))
    return made


def options() -> argparse.Namespace:
    own = EASDConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", help="a registered pair; the default one if none is named")
    parser.add_argument("--engine", default="cpu")
    parser.add_argument("--limit", type=int, default=4, help="prompts of each kind")
    parser.add_argument("--tokens", type=int, default=64, help="of a reply, at most")
    parser.add_argument("--overlap-tokens", type=int, default=own.overlap_tokens, help="N")
    parser.add_argument("--overlap-threshold", type=float, default=own.overlap_threshold)
    given = parser.parse_args()
    if min(given.limit, given.tokens, given.overlap_tokens) < 1:
        parser.error("--limit, --tokens and --overlap-tokens must be at least 1")
    return given


def main() -> None:
    given = options()
    pair = safedraft.load_pair(given.pair, engine=given.engine)
    pair.engine.capabilities.require(Capability.SESSIONS, "reading entropies")
    prompts = read_prompts(given.limit)
    replies = list(record(pair, prompts, given.tokens, given.overlap_tokens))
    console = Console(highlight=False, width=120)
    console.print(tabulate_percentiles([one for _, positions in replies for one in positions]))
    console.print(tabulate_shares(replies, given.overlap_tokens, given.overlap_threshold))
    refusals = sum(kind == REFUSALS for kind, _ in replies)
    console.print(
        f"{format_count(len(replies), 'reply', 'replies')} of at most "
        f"{format_count(given.tokens, 'token')}, of which {refusals} are refusals of "
        f"{format_count(len(prompts[REFUSALS]), 'harmful request')}; "
        f"overlap of the {given.overlap_tokens} best tokens; {machine()}"
    )


if __name__ == "__main__":
    main()
