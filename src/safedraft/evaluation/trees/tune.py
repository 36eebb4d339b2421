"""The choice of what a pair drafts: a chain, a static tree, or one that is grown.

The pair answers half of the prompts. The tokens that other shapes would have decided follow from
the replies, and their time follows from measured times of this machine's passes. The best shape of
each kind then decodes the other half of the prompts, in turn with the pair's own shape.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import median
from typing import TYPE_CHECKING

from safedraft.core.config import OF_CHAINS, OF_SPEED, DraftingConfig, SamplingParams
from safedraft.engines.base import Capability
from safedraft.evaluation.trees.drafting import Drafting, Position, simulate
from safedraft.evaluation.trees.recording import PROPOSALS, read_positions, time_passes
from safedraft.evaluation.trees.shapes import (
    Machine,
    Shape,
    best_trees,
    chain,
    choose_shape,
    find_value,
    list_children,
    share_of_ranks,
)
from safedraft.prompts.sources import find_source

if TYPE_CHECKING:
    from safedraft.core.session import Which
    from safedraft.pair import Pair

OWN, CHAIN = "the pair's own", "chain"
LEVELS = 13
"""Maximum number of levels of a static tree, the root's included."""
LEAST_GAIN, LEAST_IN_A_KIND = 1.05, 0.97
"""Another shape is chosen if it is so many times as fast as the pair's own chain, in all and in
every kind of text; where the pair's own shape is a tree, as the best chain."""

CHAINS = tuple(product((2, 4, 8, 12, 16), (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8), (0.0, 2.0)))
"""Constants of chains to try: ``draft_tokens``, ``draft_confidence``, ``draft_growth``."""
GROWN = tuple(
    DraftingConfig(draft_tokens=rows - 1, draft_tree_threshold=threshold, draft_tree_stop=stop)
    for threshold, rows, stop in product(
        (0.03, 0.06, 0.12, 0.25, 0.5), (4, 8, 12, 16, 24, 64), (0.05, 0.15, 0.3, 0.5, 0.75)
    )
)
"""Grown trees to try; with a threshold of 0.5 hardly more than chains."""


@dataclass
class ShapeTrial:
    """One shape: what is expected of it, and what it took to decode with it."""

    config: DraftingConfig
    tokens_per_pass: float
    """Tokens per pass of the target, as the recorded replies predict them."""
    gain: float
    """The speed that they predict, divided by that of the pair's own shape, minus 1."""
    blocks: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    """Decoded tokens by kind of text."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock time of decoding, by kind of text."""
    same: int = 0
    """Number of replies with the tokens of those that the pair's own shape decodes. In bfloat16 a
    few may differ, since passes over other numbers of rows round differently."""

    @property
    def decoded_per_pass(self) -> float:
        """Tokens per pass of the target, as decoded."""
        return self.tokens.total() / max(self.blocks, 1)

    def speed(self, kind: str | None = None) -> float:
        """Tokens per second in one kind of text, or in all."""
        kinds = [kind] if kind else list(self.seconds)
        return sum(self.tokens[one] for one in kinds) / sum(self.seconds[one] for one in kinds)


@dataclass(frozen=True)
class Tuning:
    """The measurements, and the results that follow from them."""

    shares: Sequence[float]
    """Share of positions at which the draft's first, second, … proposal is the decided token."""
    times: Mapping[Which, Sequence[float]]
    """Milliseconds of passes of each model over 1, 2, … rows."""
    value: float
    """Expected tokens per pass of the static tree, if acceptance depended on the shares alone."""
    trials: Mapping[str, ShapeTrial]
    """By kind of shape, the pair's own first."""

    def ratio(self, name: str, kind: str | None = None, to: str = OWN) -> float:
        """Speed of a shape over that of another, in one kind of text or in all."""
        return self.trials[name].speed(kind) / self.trials[to].speed(kind)

    @property
    def chosen(self) -> str:
        """The fastest shape, or a chain where none is clearly faster: the pair's own if it is one.

        So a pair keeps a tree of its own only where a chain is clearly slower.
        """
        chain = CHAIN if self.trials[OWN].config.branches and CHAIN in self.trials else OWN
        fast = [
            name
            for name, trial in self.trials.items()
            if self.ratio(name, to=chain) >= LEAST_GAIN
            and min(self.ratio(name, kind, chain) for kind in trial.seconds) >= LEAST_IN_A_KIND
        ]
        return max(fast, key=self.ratio, default=chain)

    @property
    def gives_way(self) -> bool:
        """Whether a chain is chosen that is not faster than the pair's own tree."""
        return self.chosen == CHAIN and self.ratio(CHAIN) < LEAST_GAIN


def read_kinds(limit: int) -> dict[str, list[str]]:
    """Prompts of the calibration half: at most ``limit`` sums, and as many of each category."""
    sums = [record.request for record in find_source("arithmetic").read_split("calibration")]
    kinds = {"sums": sums}
    for record in find_source("ordinary").read_split("calibration"):
        kinds.setdefault(record.category or "other", []).append(record.request)
    return {kind: prompts[:limit] for kind, prompts in kinds.items()}


def tune(
    pair: Pair,
    kinds: Mapping[str, Sequence[str]],
    *,
    max_new_tokens: int,
    rounds: int,
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Tuning:
    """Measure shapes on a pair, whose replies are greedy.

    Args:
        pair: on an engine with sessions.
        kinds: prompts by kind of text, at least two of each, one half to record and one to decode.
        max_new_tokens: number of tokens of a reply.
        rounds: number of times that each size of a pass is timed.
        report: called with the stage, the number of finished prompts, and the number of prompts.

    Raises:
        SafeDraftError: the engine has no sessions or drafts no trees; the message says why.
    """
    for needed in (Capability.SESSIONS, Capability.TREES):
        pair.engine.capabilities.require(needed, "safedraft tune-tree")
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    recorded = {kind: prompts[::2] for kind, prompts in kinds.items()}
    replies, overhead = _record(pair, recorded, sampling, report)
    report("timing passes", 0, 1)
    times = time_passes(pair, next(iter(recorded.values()))[0], rounds)
    machine = Machine(times["target"], times["draft"], overhead)
    proposals = [position.proposal for reply in replies for position in reply]
    shares = share_of_ranks(proposals, PROPOSALS)
    shape = try_static(machine, shares, carries=True)
    trials = _expect(drafting_of(pair.config), replies, machine, shape)
    _decode(
        pair, {kind: prompts[1::2] for kind, prompts in kinds.items()}, sampling, trials, report
    )
    return Tuning(shares, times, find_value(shape, shares), trials)


def try_chains(own: DraftingConfig) -> list[Drafting]:
    """Chains with other constants than those of the pair."""
    names = "draft_tokens", "draft_confidence", "draft_growth"
    bare = own.replace(**OF_CHAINS)
    return [Drafting(bare.replace(**dict(zip(names, values, strict=True)))) for values in CHAINS]


def try_static(machine: Machine, shares: Sequence[float], *, carries: bool) -> Shape:
    """The static tree of the least expected time per token, chains among the candidates.

    Args:
        machine: times of passes, which also give the maximum number of rows of the target.
        shares: share of positions at which the first, second, … proposal is the decided token.
        carries: whether the position after a leaf waits for the draft.
    """
    rows = len(machine.target)
    shapes = [shape for shape in best_trees(shares, rows, LEVELS).values() if shape]
    chains = [chain(length) for length in range(1, min(rows, LEVELS))]
    return choose_shape([*chains, *shapes], shares, machine, carries)


def drafting_of(config: DraftingConfig) -> DraftingConfig:
    """Return the constants of drafting of a pair."""
    return DraftingConfig(**{name: getattr(config, name) for name in OF_SPEED})


def _record(
    pair: Pair,
    kinds: Mapping[str, Sequence[str]],
    sampling: SamplingParams,
    report: Callable[[str, int, int], None],
) -> tuple[list[list[Position]], float]:
    """Record the positions of the pair's own replies, and milliseconds per token beside passes."""
    prompts = [text for texts in kinds.values() for text in texts]
    replies, overheads = [], []
    for done, text in enumerate(prompts):
        report("recording replies", done, len(prompts))
        result = pair.generate(text, sampling)
        replies.append(read_positions(pair, text, result, sampling, pair.rule))
        overheads.append(1e3 * result.statistics.overhead_seconds / len(result.trace))
    return replies, median(overheads)


def _expect(
    own: DraftingConfig,
    replies: Sequence[Sequence[Position]],
    machine: Machine,
    static: Shape,
) -> dict[str, ShapeTrial]:
    """The best shape of each kind that is not the pair's own, by what the replies would have taken.

    After a leaf the target's distribution is carried over, as in SSD.
    """
    tokens = sum(map(len, replies))

    def charge(policy: Drafting) -> tuple[float, float]:
        """Milliseconds that the replies take, and tokens per pass of the target."""
        blocks = [block for reply in replies for block in simulate(reply, policy)]
        return sum(machine.cost(block, True) for block in blocks), tokens / len(blocks)

    present, per_pass = charge(Drafting(own))
    trials = {OWN: ShapeTrial(own, per_pass, 0.0)}
    kinds = {
        CHAIN: try_chains(own),
        "static tree": [Drafting(own.with_tree(list_children(static)))],
        "grown tree": list(map(Drafting, GROWN)),
    }
    for name, policies in kinds.items():
        fitting = [one for one in policies if one.most_rows <= len(machine.target)]
        charged = {one: charge(one) for one in fitting if one.config != own}
        if charged:
            best = min(charged, key=lambda one: charged[one][0])
            taken, per_pass = charged[best]
            trials[name] = ShapeTrial(best.config, per_pass, present / taken - 1)
    return trials


def _decode(
    pair: Pair,
    kinds: Mapping[str, Sequence[str]],
    sampling: SamplingParams,
    trials: Mapping[str, ShapeTrial],
    report: Callable[[str, int, int], None],
) -> None:
    """Decode every prompt with every shape, in an order that turns."""
    names = list(trials)
    prompts = [(kind, text) for kind, texts in kinds.items() for text in texts]
    configs = {name: pair.config.replace(**dict(trials[name].config)) for name in names}
    pair.generate(prompts[0][1], sampling)
    for number, (kind, text) in enumerate(prompts):
        report("decoding", number, len(prompts))
        replies = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.perf_counter()
            result = pair.generate(text, sampling, config=configs[name])
            seconds = time.perf_counter() - started
            trial = trials[name]
            trial.seconds[kind] = trial.seconds.get(kind, 0.0) + seconds
            trial.tokens[kind] += len(result.trace)
            trial.blocks += result.statistics.blocks
            replies[name] = [token.id for token in result.trace]
        for name, reply in replies.items():
            trials[name].same += reply == replies[OWN]
