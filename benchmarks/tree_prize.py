"""What a tree of drafted tokens would gain over the chain that the decoding loop drafts.

A pair answers prompts of the calibration half, greedily and at temperature 1, by its own rule and
by lossless speculation. The draft reads each reply once more, which gives the rank of every token
among the draft's proposals: what a second, third or later child of a tree would have won. With the
times of this machine's passes that gives the time per token of the pair's chain, of a chain with
other constants, of the best static tree (Sequoia, arXiv 2402.12374) and of a tree that follows the
draft's confidence. Constants are chosen on one half of the replies and count on the other. No tree
is decoded. ``--output`` has every position, without texts and tokens.

The same blocks are charged with the times of a modelled accelerator: a pass of the target takes 1
for up to 64 rows, and one of the draft a given share of that.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path
from statistics import median
from typing import Any

from prize_tables import show
from rich.console import Console

import safedraft
from safedraft.core.config import DraftingConfig, SamplingParams
from safedraft.core.rule import Rule
from safedraft.core.session import Which
from safedraft.engines.base import Capability
from safedraft.evaluation.benchmark import machine
from safedraft.evaluation.trees.drafting import (
    Drafting,
    Position,
    choose_policy,
    cross_fit,
    simulate,
)
from safedraft.evaluation.trees.recording import PROPOSALS, read_positions, time_passes
from safedraft.evaluation.trees.shapes import (
    Block,
    Machine,
    find_value,
    list_children,
    share_of_ranks,
)
from safedraft.evaluation.trees.tune import (
    GROWN,
    drafting_of,
    try_chains,
    try_static,
)
from safedraft.prompts.phrases import is_refusal
from safedraft.rules import find_rule
from safedraft.rules.speculative import Speculative
from safedraft.text.results import GenerationResult
from safedraft.training.requests import SHIPPED, read_own

CATEGORIES = {"sums": "arithmetic", "prose": "explanations", "code": "code", "chat": "chat"}
"""Kinds of harmless text, each with its category of SafeDraft's own prompts."""
REFUSALS = "refusals"
"""The kind of the replies that decline a harmful request; all others to those are left out."""

ACCELERATOR_ROWS = 64
"""Rows up to which a pass of the modelled accelerator takes the same time."""
LIMIT, TOKENS = 4, 64


@dataclass(frozen=True)
class Way:
    """How replies are decoded."""

    rule: Rule
    temperature: float

    @property
    def carries(self) -> bool:
        """Whether the position after a block that was accepted throughout waits for the draft."""
        return find_rule(self.rule.name).after_match == "carry"

    def __str__(self) -> str:
        return f"{self.rule.name}, {'greedy' if not self.temperature else 'sampled'}"


@dataclass(frozen=True)
class Reply:
    """A recorded reply, without its text."""

    way: Way
    kind: str
    number: int
    """The number of the prompt in its kind."""
    positions: list[Position]
    agrees: int
    """Number of positions at which the draft's proposal is the one that decoding saw."""
    blocks: int
    draft_passes: int
    seconds_after_first: float
    tokens_after_first: int
    overhead_seconds: float


def read_prompts(limit: int) -> dict[str, list[str]]:
    """Prompts of the calibration half by kind."""
    requests = [request for request in read_own("calibration") if request.source == SHIPPED]
    prompts = {
        kind: [one.text for one in requests if (one.kind, one.category) == ("ordinary", category)]
        for kind, category in CATEGORIES.items()
    }
    prompts[REFUSALS] = [request.text for request in requests if request.kind == "harmful"]
    return {kind: texts[:limit] for kind, texts in prompts.items()}


def find_ways(pair: safedraft.Pair) -> list[Way]:
    """The pair's own rule and lossless speculation, greedy and sampled.

    Every position of lossless speculation is recorded with a proposal of the draft, so that it
    carries where decoding would take a bonus token; its tokens have the same distribution.
    """
    rules = find_rule(pair.rule), replace(Speculative(), after_match="carry")
    return [Way(rule, temperature) for rule, temperature in product(rules, (0.0, 1.0))]


def record(
    pair: safedraft.Pair, prompts: Mapping[str, Sequence[str]], tokens: int
) -> Iterator[Reply]:
    """Decode every prompt in every way; harmful requests by the pair's own rule alone."""
    for way in find_ways(pair):
        for kind, texts in prompts.items():
            if kind == REFUSALS and way.rule.name != pair.rule:
                continue
            for number, text in enumerate(texts):
                say(f"{way}: {kind} {number + 1} of {len(texts)}")
                sampling = SamplingParams(
                    max_new_tokens=tokens, temperature=way.temperature, seed=number
                )
                result = pair.generate(text, sampling, rule=way.rule)
                if kind != REFUSALS or is_refusal(result.text):
                    yield read_reply(pair, text, way, sampling, kind, number, result)


def read_reply(
    pair: safedraft.Pair,
    text: str,
    way: Way,
    sampling: SamplingParams,
    kind: str,
    number: int,
    result: GenerationResult,
) -> Reply:
    """A reply with what the draft proposed at every position."""
    positions = read_positions(pair, text, result, sampling, way.rule)
    cost = result.statistics
    return Reply(
        way,
        kind,
        number,
        positions,
        sum((p.proposal == 1) == t.matched for t, p in zip(result.trace, positions, strict=True)),
        cost.blocks,
        cost.draft_passes,
        cost.seconds - cost.first_token_seconds,
        sum(token.block > 0 for token in result.trace),
        cost.overhead_seconds,
    )


def make_machines(
    times: Mapping[Which, Sequence[float]], shares: Sequence[float]
) -> dict[str, Machine]:
    """This machine, and an accelerator for each share that a pass of the draft may take."""
    modelled = {
        f"c = {share:g}": Machine([1.0] * ACCELERATOR_ROWS, [share] * ACCELERATOR_ROWS)
        for share in shares
    }
    return {"measured": Machine(times["target"], times["draft"])} | modelled


def evaluate(
    replies: Sequence[Reply], machines: Mapping[str, Machine], own: DraftingConfig
) -> dict[str, Any]:
    """The figures of the replies of one way."""
    way = replies[0].way
    tokens = sum(len(reply.positions) for reply in replies)
    overhead = 1e3 * median(reply.overhead_seconds / len(reply.positions) for reply in replies)
    machines = {
        name: one._replace(token=overhead) if name == "measured" else one
        for name, one in machines.items()
    }
    present = Drafting(own)
    candidates = [present, *try_chains(own), *map(Drafting, GROWN)]
    blocks = {policy: simulate_all(replies, policy) for policy in candidates}
    proposals = [position.proposal for reply in replies for position in reply.positions]
    shares = share_of_ranks(proposals, PROPOSALS)
    return {
        "rule": way.rule.name,
        "temperature": way.temperature,
        "replies": len(replies),
        "tokens": tokens,
        "overhead_ms_per_token": overhead,
        "acceptance": count_acceptance(replies),
        "check": check(replies, blocks[present], machines["measured"]),
        "machines": {
            name: try_machine(replies, one, present, blocks, shares)
            for name, one in machines.items()
        },
    }


def try_machine(
    replies: Sequence[Reply],
    one: Machine,
    present: Drafting,
    blocks: Mapping[Drafting, Sequence[Sequence[Block]]],
    shares: Sequence[float],
) -> dict[str, Any]:
    """The figures of a machine; no pass of the target has more rows than it knows the time of."""
    shape = try_static(one, shares, carries=replies[0].way.carries)
    static = Drafting(present.config.with_tree(list_children(shape)))
    of_static = simulate_all(replies, static)
    fitting = [policy for policy in blocks if policy.most_rows <= len(one.target)]
    families = {
        "chain": [policy for policy in fitting if not policy.config.branches],
        "static": [static],
        "grown": [policy for policy in fitting if policy.config.branches],
    }
    passes = sum(map(len, of_static))
    return compare(replies, {**blocks, static: of_static}, one, present, families) | {
        "static_tokens_per_target_pass": {
            "expected": find_value(shape, shares),
            "simulated": sum(len(reply.positions) for reply in replies) / passes,
        }
    }


def simulate_all(replies: Sequence[Reply], policy: Drafting) -> list[list[Block]]:
    """The blocks of each reply."""
    return [simulate(reply.positions, policy) for reply in replies]


def count_acceptance(replies: Sequence[Reply]) -> list[dict[str, Any]]:
    """The share of each proposal, and of each rank in q, by scheme and kind of text."""
    groups: dict[tuple[str, str], list[Position]] = {}
    for reply in replies:
        for position in reply.positions:
            scheme = position.scheme or "none"
            for kind in (reply.kind, "all"):
                groups.setdefault((scheme, kind), []).append(position)
    return [
        {
            "scheme": scheme,
            "kind": kind,
            "positions": len(positions),
            "shares": share_of_ranks([position.proposal for position in positions], PROPOSALS),
            "ranks": share_of_ranks([position.rank for position in positions], PROPOSALS),
            "mean_largest": sum(position.largest for position in positions) / len(positions),
        }
        for (scheme, kind), positions in groups.items()
    ]


def check(
    replies: Sequence[Reply], blocks: Sequence[Sequence[Block]], one: Machine
) -> dict[str, float]:
    """How far the simulation of the pair's chain is from what was decoded, which carried."""
    positions = sum(len(reply.positions) for reply in replies)
    passes = [block for own in blocks for block in own]
    later = sum(reply.tokens_after_first for reply in replies)
    return {
        "proposals_that_agree": sum(reply.agrees for reply in replies) / positions,
        "tokens_per_target_pass": positions / len(passes),
        "decoded_tokens_per_target_pass": positions / sum(reply.blocks for reply in replies),
        "draft_passes": sum(len(block.widths) + block.leaf for block in passes),
        "decoded_draft_passes": sum(reply.draft_passes for reply in replies),
        "ms_per_token": sum(one.cost(block, True) for block in passes) / positions,
        "decoded_ms_per_token": 1e3
        * sum(reply.seconds_after_first for reply in replies)
        / max(later, 1),
    }


def compare(
    replies: Sequence[Reply],
    blocks: Mapping[Drafting, Sequence[Sequence[Block]]],
    one: Machine,
    own: Drafting,
    families: Mapping[str, Sequence[Drafting]],
) -> dict[str, Any]:
    """The pair's chain and what each family of policies gains over it on a machine, by kind."""
    carries = replies[0].way.carries
    halves = [reply.number % 2 for reply in replies]
    costs = {
        policy: [sum(one.cost(block, carries) for block in reply) for reply in blocks[policy]]
        for policy in (own, *(policy for family in families.values() for policy in family))
    }
    by_family = {name: {p: costs[p] for p in policies} for name, policies in families.items()}
    fitted = {name: cross_fit(family, halves) for name, family in by_family.items()}
    kinds = {"all": list(range(len(replies)))}
    for at, reply in enumerate(replies):
        kinds.setdefault(reply.kind, []).append(at)
    figures: dict[str, Any] = {}
    for kind, chosen in kinds.items():
        present = sum(costs[own][at] for at in chosen)
        tokens = sum(len(replies[at].positions) for at in chosen)
        figures[kind] = {
            "tokens": tokens,
            "tokens_per_target_pass": tokens / sum(len(blocks[own][at]) for at in chosen),
            "time_per_token": present / tokens,
            "gain": {
                name: present / sum(cost[at] for at in chosen) - 1 for name, cost in fitted.items()
            },
        }
    every = [True] * len(replies)
    chosen_of_all = {name: str(choose_policy(own, every)) for name, own in by_family.items()}
    return {"kinds": figures, "chosen": chosen_of_all}


def write_positions(reply: Reply) -> dict[str, Any]:
    """A reply as JSON has it."""
    return {
        "rule": reply.way.rule.name,
        "temperature": reply.way.temperature,
        "kind": reply.kind,
        "positions": [position._replace(children=()) for position in reply.positions],
    }


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", help="a registered pair; the default one if none is named")
    parser.add_argument("--engine", default="cpu")
    parser.add_argument("--draft-dtype", help="of the draft, if it differs")
    parser.add_argument("--limit", type=int, default=LIMIT, help="prompts of each kind, at least 2")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a reply, at most")
    parser.add_argument("--rounds", type=int, default=9, help="of timed passes")
    parser.add_argument(
        "--share",
        type=float,
        nargs="+",
        default=[0.05, 0.15, 0.3],
        help="c: time of the draft's pass over the target's on a modelled accelerator",
    )
    parser.add_argument("--output", type=Path, default=Path("results/tree_prize.json"))
    given = parser.parse_args()
    if given.limit < 2:
        parser.error("--limit: give at least 2, constants are chosen on one half of the prompts")
    return given


def main() -> None:
    given = options()
    started = time.perf_counter()
    own_type = {"draft_dtype": given.draft_dtype} if given.draft_dtype else {}
    pair = safedraft.load_pair(given.pair, engine=given.engine, **own_type)
    pair.engine.capabilities.require(Capability.SESSIONS, "the probe")
    replies = list(record(pair, read_prompts(given.limit), given.tokens))
    say("timing passes")
    times = time_passes(pair, next(iter(read_prompts(1).values()))[0], given.rounds)
    own = drafting_of(pair.config)
    machines = make_machines(times, given.share)
    ways = []
    for way, some in groupby(replies, key=lambda reply: reply.way):
        say(f"{way}: simulating")
        ways.append(evaluate(list(some), machines, own))
    outcome = {
        "pair": repr(pair),
        "constants": own.model_dump(),
        "prompts_of_each_kind": given.limit,
        "tokens_of_each_reply": given.tokens,
        "times_ms": times,
        "ways": ways,
        "machine": machine(),
        "replies": [write_positions(reply) for reply in replies],
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(outcome) + "\n", encoding="utf-8")
    console = Console(highlight=False, width=160)
    show(console, outcome)
    refusals = sum(reply.kind == REFUSALS for reply in replies)
    console.print(
        f"{len(replies)} replies of at most {given.tokens} tokens, {refusals} of them refusals of "
        f"{2 * given.limit} harmful requests; the pair's chain: {own}; "
        f"{time.perf_counter() - started:.0f} s; {machine()}"
    )


if __name__ == "__main__":
    main()
