"""Blocks of any shape, from recorded positions."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from helpers.decoding import decode_one, decode_together, request_of
from helpers.models import RandomModel
from torch import Tensor

from safedraft.core.config import DraftingConfig
from safedraft.core.decide import propose
from safedraft.core.rows import rank
from safedraft.core.tree import find_slots
from safedraft.engines.scripted import Script
from safedraft.evaluation.trees.drafting import Child, Drafting, Position, cross_fit, simulate
from safedraft.evaluation.trees.shapes import (
    Block,
    Shape,
    best_trees,
    expect,
    find_value,
    list_children,
    share_of_ranks,
)
from safedraft.rules.sequoia import Sequoia

STEEP = (0.8, 0.1, 0.05, 0.01)


def position(proposal: int, *chances: float, ends: bool = False) -> Position:
    """A position at which that proposal was the decided token; ``ends`` is of the first one."""
    children = [Child(chance, ends and not at) for at, chance in enumerate(chances)]
    return Position(None, proposal, proposal, max(chances), 1.0, tuple(children))


def test_a_static_tree_gains_what_it_is_worth_where_positions_do_not_depend() -> None:
    shares = STEEP
    shape = best_trees(shares, 8, 4)[8, 4]
    tree = Drafting(DraftingConfig().with_tree(list_children(shape)))
    rng = random.Random(0)
    blocks, positions = [], []
    for _ in range(40):
        outcomes = rng.choices(range(1, 6), [*shares, 1 - sum(shares)], k=500)
        reply = [position(outcome, *STEEP) for outcome in outcomes]
        blocks += simulate(reply, tree)[:-8]  # the last ones are cut
        positions += reply
    expected = expect(shape, shares)
    mean = sum(block.tokens for block in blocks) / len(blocks)
    assert mean == pytest.approx(expected.tokens, rel=0.02)
    leaves = sum(block.leaf for block in blocks) / len(blocks)
    assert leaves == pytest.approx(expected.leaf, abs=0.02)
    assert {(block.rows, block.widths) for block in blocks} == {(expected.rows, expected.widths)}
    proposals = [one.proposal for one in positions]
    assert share_of_ranks(proposals, 4) == pytest.approx(shares, abs=0.01)


def says_by_chance(shares: tuple[float, ...], *, drafts: bool) -> Script:
    """One of two models: the draft's k-th proposal is the target's token in that share of places.

    Whether it is follows from a hash of the text, so that no place depends on another.
    """

    def script(ids: Sequence[int]) -> Tensor:
        chance = random.Random(f"{ids}")
        order = chance.sample(range(9), 9)
        logits = torch.zeros(9)
        if not drafts:
            logits[order[chance.choices(range(5), [*shares, 1 - sum(shares)])[0]]] = 9.0
        else:
            logits[torch.tensor(order)] = torch.arange(9.0, 0.0, -1.0)
        return logits

    return script


@pytest.mark.parametrize("tree", ["2-2-1-1", "3-1-0-1-2", "1-1-1"])
def test_a_pair_of_independent_places_decides_what_the_program_says(tree: str) -> None:
    target, draft = (says_by_chance(STEEP, drafts=drafts) for drafts in (False, True))
    config = DraftingConfig().with_tree(tree)
    requests = [
        request_of(Sequoia(), dict(config), ((n,), (n,)), max_new_tokens=120) for n in range(9)
    ]
    replies = decode_together(target, draft, requests)
    decided = sum(map(len, replies)) / sum(steps[-1].block + 1 for steps in replies)
    assert decided == pytest.approx(find_value(rebuild(tree), STEEP), rel=0.06)


def rebuild(tree: str) -> Shape:
    """The shape of a tree as the constant writes it."""
    counts = [int(part) for part in tree.split("-")]

    def node(slot: int) -> Shape:
        return tuple(node(child) for child in find_slots(counts, slot))

    return node(0)


def grown_tree(threshold: float, rows: int, stop: float) -> Drafting:
    return Drafting(
        DraftingConfig(draft_tokens=rows - 1, draft_tree_threshold=threshold, draft_tree_stop=stop)
    )


def test_a_grown_tree_by_hand() -> None:
    reply = [
        position(2, 0.6, 0.3),  # the second child, of score 0.3
        position(1, 0.9, 0.1),  # below it 0.27; below the first 0.54 and 0.06
        position(3, 0.5, 0.5),
        position(1, 1.0),
    ]
    grown = grown_tree(threshold=0.05, rows=5, stop=0.5)
    # The root, two children, and the two best of the four below them, of scores 0.54 and 0.27.
    first, second = simulate(reply, grown)
    assert first == Block(rows=5, widths=(1, 2), leaf=1.0, tokens=3)
    assert second == Block(rows=2, widths=(1,), leaf=0.0, tokens=1)
    # With room for a sixth, 0.06 is kept too, and no more room is left.
    longer = [*reply, position(1, 1.0)]
    assert simulate(longer, grown_tree(0.05, 6, 0.5))[0].rows == 6
    # A tree has no more nodes than tokens are left.
    assert simulate(reply, grown_tree(0.05, 6, 0.5))[0].rows == 5
    cautious = grown_tree(threshold=0.05, rows=5, stop=0.95)
    assert simulate(reply, cautious)[0] == Block(3, (1,), 1.0, 2)
    # Only the first children reach 0.5; the third is kept all the same, and not expanded.
    narrow = grown_tree(threshold=0.5, rows=5, stop=0.5)
    assert simulate(reply, narrow)[0] == Block(4, (1, 1, 1), 0.0, 1)


def test_no_shape_drafts_after_the_end() -> None:
    reply = [position(1, 0.9), position(1, 0.9, ends=True)]
    policies = [
        Drafting(DraftingConfig(draft_tokens=5)),
        grown_tree(0.1, 8, 0.1),
        Drafting(DraftingConfig(draft_tokens=8, draft_tree=(2, 1, 0, 1))),
    ]
    for policy in policies:
        assert simulate(reply, policy) == [Block(3, (1, 1), 0.0, 2)]


def test_constants_are_chosen_on_the_other_half() -> None:
    costs = {"a": [1.0, 9.0, 1.0, 9.0], "b": [5.0, 5.0, 5.0, 5.0]}
    assert cross_fit(costs, [0, 1, 0, 1]) == [5.0, 9.0, 5.0, 9.0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("confidence", "growth"), [(0.0, 0.0), (0.5, 2.0)])
def test_a_chain_decides_the_blocks_of_the_decoding_loop(
    temperature: float, confidence: float, growth: float
) -> None:
    constants = {"draft_tokens": 5, "draft_confidence": confidence, "draft_growth": growth}
    target = RandomModel(1, 12, shared=0.8)
    draft = RandomModel(2, 12, shared=0.8)
    for seed in range(5):
        request = request_of(
            None,
            constants,
            ((seed,), (seed,)),
            end=(11,),
            max_new_tokens=60,
            temperature=temperature,
            seed=seed,
        )
        steps = decode_one(target, draft, request)
        reply = []
        for at, step in enumerate(steps):
            ids = [seed, *(other.token for other in steps[:at])]
            (first,) = propose(rank(draft(ids)[None], [temperature]), [request], [at])
            proposal = 1 if first.token == step.token else 2
            ends = first.token in request.end_tokens
            child = Child(first.probability, ends)
            reply.append(Position(step.scheme, 1, proposal, 1.0, 1.0, (child,)))
        blocks = simulate(reply, Drafting(DraftingConfig(**constants)))
        decoded = Counter(step.block for step in steps)
        assert [block.tokens for block in blocks] == [decoded[at] for at in sorted(decoded)]
