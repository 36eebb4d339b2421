"""Static trees: the dynamic program beside every tree, and what their blocks cost."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from safedraft.core.config import DraftingConfig
from safedraft.core.tree import find_slots
from safedraft.evaluation.trees import shapes

SHARES = {
    "even": (0.25, 0.25, 0.25, 0.25),
    "steep": (0.8, 0.1, 0.05, 0.01),
    "first only": (0.9, 0.0, 0.0, 0.0),
    "odd": (0.1, 0.5, 0.02, 0.3),
}


def all_shapes(nodes: int, levels: int, branches: int) -> Iterator[Any]:
    """Every tree of exactly so many nodes, in at most so many levels."""

    def forests(nodes: int, levels: int, branches: int) -> Iterator[Any]:
        if not nodes:
            yield ()
        elif branches and levels:
            for first in range(1, nodes + 1):
                for child in all_shapes(first, levels, most):
                    for others in forests(nodes - first, levels, branches - 1):
                        yield (child, *others)

    most = branches
    yield from forests(nodes - 1, levels - 1, branches)


def test_there_are_as_many_trees_as_catalan_numbers() -> None:
    counts = [len(list(all_shapes(nodes, nodes, nodes))) for nodes in range(1, 7)]
    assert counts == [1, 1, 2, 5, 14, 42]


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_the_dynamic_program_is_as_good_as_every_tree(shares: tuple[float]) -> None:
    found = shapes.best_trees(shares, nodes=9, levels=9)
    for nodes, levels in product(range(1, 10), range(1, 10)):
        every = list(all_shapes(nodes, levels, 4))
        if levels > nodes:
            continue
        if not every:
            assert (nodes, levels) not in found
            continue
        shape = found[nodes, levels]
        assert shape in every
        best = max(shapes.find_value(other, shares) for other in every)
        assert shapes.find_value(shape, shares) == pytest.approx(best, abs=1e-12)


def test_a_tree_is_chosen_where_rows_are_free_and_a_chain_where_they_are_not() -> None:
    shares = SHARES["steep"]
    every = [*shapes.best_trees(shares, 12, 8).values(), *map(shapes.chain, range(12))]
    free = shapes.Machine([1.0] * 12, [0.2] * 12)
    costly = shapes.Machine([0.2 * rows for rows in range(1, 13)], [0.01] * 12)
    wide = shapes.choose_shape(every, shares, free, carries=True)
    narrow = shapes.choose_shape(every, shares, costly, carries=True)
    assert len(wide) > 1
    assert narrow == shapes.chain(len(shapes.count_levels(narrow)) - 1)

    def time_of(shape: Any, machine: Any) -> float:
        block = shapes.expect(shape, shares)
        return machine.cost(block, True) / block.tokens

    for machine, chosen in ((free, wide), (costly, narrow)):
        assert time_of(chosen, machine) == min(time_of(shape, machine) for shape in every)


def test_what_a_block_costs() -> None:
    machine = shapes.Machine(target=[10.0, 11.0, 12.0], draft=[1.0, 1.5], token=0.25)
    block = shapes.Block(rows=4, widths=(1, 2, 3), leaf=1.0, tokens=4)
    # Four rows are a pass of three and one of one; three rows of the draft are two and one.
    passes = (12.0 + 10.0) + (1.0 + 1.5 + (1.5 + 1.0))
    assert machine.cost(block, carries=False) == pytest.approx(passes + 4 * 0.25)
    assert machine.cost(block, carries=True) == pytest.approx(passes + 1.0 + 4 * 0.25)


def rebuild(tree: tuple[int, ...], slot: int = 0) -> Any:
    """A tree from the numbers of children of its nodes."""
    return tuple(rebuild(tree, child) for child in find_slots(tree, slot))


def test_a_tree_is_what_its_constant_says() -> None:
    for nodes in range(1, 7):
        for shape in all_shapes(nodes, nodes, nodes):
            tree = shapes.list_children(shape)
            assert sum(tree) == nodes - 1
            assert DraftingConfig(draft_tokens=9, draft_tree=tree).draft_tree == tree
            assert rebuild(tree) == shape
    assert shapes.list_children(shapes.chain(3)) == (1, 1, 1)
