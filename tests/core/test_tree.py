"""Trees of drafts: which nodes are drafted, the walk through them, and what counts as a match."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from helpers.decoding import computed, decode_one, request_of, shape, tokens_of
from helpers.models import VOCABULARY, RandomModel, says
from torch import Tensor

from safedraft.core.config import DraftingConfig
from safedraft.core.decide import Draft
from safedraft.core.decode import Batch, decode
from safedraft.core.rows import Place, rank
from safedraft.core.tree import Node, Tree, grow
from safedraft.engines.scripted import Script, ScriptedEngine

TEXT = [1, 2, 3, 4, 5, 6, 7, 8]


def hesitates(first: Sequence[int], second: Sequence[int], prompt: int = 1) -> Script:
    """A draft that proposes ``first`` with q = 0.7 and ``second`` with 0.3, over and over."""

    def script(ids: Sequence[int]) -> Tensor:
        at = (len(ids) - prompt) % len(first)
        q = torch.full((VOCABULARY,), 1e-9)
        q[second[at]], q[first[at]] = 0.3, 0.7
        return q.log()

    return script


def propose(node: Node, **q: float) -> None:
    """Give a node a distribution of the draft over the tokens a, b, c, d and e."""
    chances = torch.tensor([q.get(name, 1e-9) for name in "abcde"])
    ranked = rank((chances / chances.sum()).log()[None], [0.0])
    place = Place(ranked, 0)
    node.draft = Draft(place.best(), place.chance(place.best()), place)


def names(nodes: Sequence[Node]) -> list[str]:
    return ["".join("abcde"[token] for token in node.path()) for node in nodes]


def test_the_chain_comes_first_and_then_the_most_likely_paths() -> None:
    root = Node(0)
    propose(root, a=0.6, b=0.3, c=0.1)
    level = grow([root], 8, 0.05)
    assert names(level) == ["a", "b", "c"]
    assert [node.score for node in level] == pytest.approx([0.6, 0.3, 0.1])
    propose(level[0], e=0.5, d=0.45, a=0.05)  # 0.3, 0.27 and 0.03
    propose(level[1], c=0.9, d=0.1)  # 0.27 and 0.03
    propose(level[2], a=0.55, b=0.45)  # 0.055 and 0.045
    children = grow(level, 8, 0.05)
    assert names(children)[:1] == ["ae"]
    assert set(names(children)) == {"ae", "ad", "bc", "ca"}
    assert names(level[0].children) == ["ae", "ad"]
    assert [node.score for node in children] == sorted((n.score for n in children), reverse=True)


def test_a_tree_has_no_more_nodes_than_there_is_room_for() -> None:
    root = Node(0)
    propose(root, a=0.3, b=0.3, c=0.2, d=0.2)
    assert names(grow([root], 2, 0.0)) == ["a", "b"]


@pytest.mark.parametrize("threshold", [1.0, 0.9])
def test_a_chain_has_the_drafts_own_proposals(threshold: float) -> None:
    root = Node(0)
    propose(root, a=0.6, b=0.4)
    (child,) = grow([root], 8, threshold)
    propose(child, a=0.2, b=0.2, c=0.3, d=0.2)
    assert names(grow([child], 8, threshold)) == ["ac"]


@pytest.mark.parametrize(
    ("constants", "end", "frontier"),
    [
        ({}, (), ["a", "b", "c"]),
        ({"draft_confidence": 0.25}, (), ["a", "b"]),
        ({}, (1,), ["a", "c"]),
        ({"draft_tree_stop": 0.95}, (), ["a", "b", "c"]),
        ({"draft_tree_stop": 0.95}, (2,), []),
        ({"draft_tokens": 3}, (), []),
    ],
)
def test_where_the_draft_reads_on(
    constants: dict[str, float], end: tuple[int, ...], frontier: list[str]
) -> None:
    config = DraftingConfig(**{"draft_tokens": 9, "draft_tree_threshold": 0.01, **constants})  # type: ignore[arg-type]
    tree = Tree(0)
    tree.plant(config.draft_tokens)
    propose(tree.root, a=0.6, b=0.3, c=0.1)
    tree.grow(config, end)
    assert names(tree.frontier) == frontier
    assert names(tree.nodes) == ["a", "b", "c"]


def test_a_fixed_tree_has_the_drafts_proposals_by_rank() -> None:
    config = DraftingConfig(draft_tokens=9, draft_tree="2-1-0-3")  # type: ignore[arg-type]
    assert config.draft_tree == (2, 1, 0, 3)
    tree = Tree(0)
    tree.plant(9)
    propose(tree.root, a=0.6, b=0.3, c=0.1)
    tree.grow(config, ())
    assert names(tree.nodes) == ["a", "b"]
    assert names(tree.frontier) == ["a"]  # the second child has no children
    propose(tree.nodes[0], e=0.2, d=0.8)
    tree.grow(config, ())
    assert names(tree.frontier) == ["ad"]
    propose(tree.frontier[0], c=0.5, b=0.3, a=0.2)
    tree.grow(config, ())
    assert names(tree.nodes) == ["a", "b", "ad", "adc", "adb", "ada"]
    assert tree.frontier == []


@pytest.mark.parametrize(
    ("room", "end", "nodes"),
    [(9, (), ["a", "b", "c"]), (2, (), ["a", "b"]), (9, (0,), ["a", "b", "c"])],
)
def test_a_fixed_tree_has_no_more_nodes_than_there_is_room_for(
    room: int, end: tuple[int, ...], nodes: list[str]
) -> None:
    config = DraftingConfig(draft_tokens=9, draft_tree=(3, 1, 1, 1))
    tree = Tree(0)
    tree.plant(room)
    propose(tree.root, a=0.6, b=0.3, c=0.1)
    tree.grow(config, end)
    assert names(tree.nodes) == nodes
    wanted = [name for name in nodes if "abcde".index(name) not in end]
    assert names(tree.frontier) == (wanted if room > len(nodes) else [])


CONSTANTS = {"sample_space_size": 1, "draft_tree_threshold": 0.1, "alpha_intersection": 0.0}


def test_a_second_child_continues_the_block_and_is_no_match() -> None:
    target = says(TEXT, 1)
    draft = hesitates([9, 2, 9, 4, 9, 6, 9, 8], [1, 9, 3, 9, 5, 9, 7, 9])
    steps = {
        tokens: decode_one(
            target, draft, request_of(None, {**CONSTANTS, "draft_tokens": tokens}, max_new_tokens=8)
        )
        for tokens in (1, 2, 6)
    }
    assert all(tokens_of(one) == TEXT for one in steps.values())
    assert all([s.matched for s in one] == [False, True] * 4 for one in steps.values())
    # Of one node only the first proposal fits, of two both children of the root, of six more.
    assert [shape(one) for one in steps.values()] == [".|x.|x.|x.|x", ".x|.x|.x|.x", ".x.|x.x|.x"]


def test_second_children_lead_to_union_as_a_chain_does() -> None:
    target, draft = says(TEXT, 1), hesitates([9] * 8, TEXT)
    constants = {**CONSTANTS, "bin_size": 3, "draft_tokens": 8, "alpha_union": 0.1}
    found = []
    for threshold in (1.0, 0.1):
        request = request_of(
            None, {**constants, "draft_tree_threshold": threshold}, max_new_tokens=8
        )
        found.append(decode_one(target, draft, request))
    chain, tree = found
    assert tokens_of(tree) == TEXT
    assert [step.match_ratio for step in tree] == [None, None, 0, None, None, 0, None, None]
    assert "".join(step.scheme[0] for step in tree if step.scheme) == "iiiuuuuu"
    assert [step.block for step in tree] != [step.block for step in chain]
    for one, other in zip(chain, tree, strict=True):
        assert (one.token, one.matched, one.scheme, one.alpha, one.match_ratio) == (
            other.token,
            other.matched,
            other.scheme,
            other.alpha,
            other.match_ratio,
        )


def test_passes_have_the_nodes_of_a_level_and_of_a_tree() -> None:
    draft = hesitates([9, 9, 3, 4], [1, 2, 9, 9])
    engine = ScriptedEngine(says(TEXT[:4], 1), draft)
    request = request_of(None, {**CONSTANTS, "draft_tokens": 7}, max_new_tokens=3)
    batch = Batch(engine)
    generation = batch.add(request)
    while not generation.ended:
        batch.step()
    assert tokens_of(list(generation.steps)) == [1, 2, 3]
    target, drafting = engine.sessions
    assert generation.target_passes.rows == sum(computed(target))
    # No more nodes than tokens that are left: two children of the root and one of the first.
    assert computed(target)[0] == 1 + 3
    assert computed(drafting)[:2] == [1, 2]


def test_an_end_token_inside_a_tree() -> None:
    target, draft = says(TEXT, 1), hesitates([9, 2, 3], [1, 9, 9])
    request = request_of(None, {**CONSTANTS, "draft_tokens": 8}, end=[9, 2], max_new_tokens=8)
    engine = ScriptedEngine(target, draft)
    steps = [step for _, step in decode(engine, [request])]
    assert [(step.token, step.block) for step in steps] == [(1, 0), (2, 0)]
    # The root is read, then the second child alone: the first one would end the reply.
    assert computed(engine.sessions[1]) == [1, 1]


def test_sessions_hold_the_decided_tokens_alone() -> None:
    engine = ScriptedEngine(*(RandomModel(seed, 9, 0.4) for seed in (1, 2)))
    constants = {"draft_tokens": 9, "draft_tree_threshold": 0.02}
    steps = [
        step
        for _, step in decode(
            engine,
            [request_of(None, constants, max_new_tokens=40, temperature=0.8, seed=1)],
        )
    ]
    # Other children than the first were taken.
    assert any(not one.matched and one.block == after.block for one, after in pairwise(steps))
    for session in engine.sessions:
        known = [0, *tokens_of(steps)]
        assert session.ids == known[: len(session.ids)]
        assert len(session.open) == 0


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_penalties_count_the_tokens_of_their_own_path(temperature: float) -> None:
    target, draft = (RandomModel(seed, 9, 0.5) for seed in (1, 2))
    sampling = {"temperature": temperature, "seed": 3, "max_new_tokens": 40}
    replies = [
        decode_one(
            target,
            draft,
            request_of(
                None,
                {"draft_tokens": 9, "draft_tree_threshold": threshold},
                frequency_penalty=1.5,
                presence_penalty=0.5,
                **sampling,
            ),
        )
        for threshold in (1.0, 0.02)
    ]
    decided = [[(s.token, s.matched, s.scheme, s.alpha) for s in steps] for steps in replies]
    assert decided[0] == decided[1]
    # Other children than the first were taken.
    pairs = pairwise(replies[1])
    assert any(not one.matched and one.block == after.block for one, after in pairs)
