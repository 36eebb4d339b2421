"""Static trees of drafted tokens: the best ones, and what their blocks cost on a machine.

Sequoia (arXiv 2402.12374): the acceptance of a drafted token is taken to depend on its place among
its siblings and on nothing else. A dynamic program then finds the tree of n nodes with the most
expected tokens per pass of the target, and measured times say which n is the fastest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

Shape = tuple["Shape", ...]
"""A node of a static tree: its children, in the order in which the draft proposes them."""


class Block(NamedTuple):
    """The rows and decided tokens of one pass of the target; expected values are fractions."""

    rows: int
    """The rows of the target's pass: the last committed token and every node."""
    widths: tuple[int, ...]
    """Rows of each pass of the draft."""
    leaf: float
    """Probability that another pass of the draft reads the leaf at which the walk ends."""
    tokens: float
    """Decided tokens."""


class Machine(NamedTuple):
    """The time of the passes on one machine, in any unit."""

    target: Sequence[float]
    """A pass of the target over 1, 2, … rows."""
    draft: Sequence[float]
    """A pass of the draft over 1, 2, … rows."""
    token: float = 0.0
    """A decided token, outside of the passes."""

    def cost(self, block: Block, carries: bool) -> float:
        """Time of a block.

        Args:
            block: its passes.
            carries: whether the position after a leaf waits for the draft; otherwise the target
                decides it alone.
        """
        leaf = block.leaf * self.draft[0] if carries else 0.0
        drafting = sum(_take(self.draft, width) for width in block.widths)
        return _take(self.target, block.rows) + drafting + leaf + self.token * block.tokens


def _take(times: Sequence[float], rows: int) -> float:
    """Time of some rows; more rows than were measured take several passes."""
    passes, rest = divmod(rows, len(times))
    return passes * times[-1] + (times[rest - 1] if rest else 0.0)


def share_of_ranks(ranks: Sequence[int], most: int) -> list[float]:
    """Share of each rank from 1 to ``most``."""
    return [ranks.count(rank) / max(len(ranks), 1) for rank in range(1, most + 1)]


def chain(length: int) -> Shape:
    """The tree that is a chain of ``length`` drafted tokens."""
    return (chain(length - 1),) if length else ()


def count_levels(shape: Shape) -> list[int]:
    """Number of nodes of each level, from the root."""
    counts, level = [], [shape]
    while level:
        counts.append(len(level))
        level = [child for node in level for child in node]
    return counts


def expect(shape: Shape, shares: Sequence[float]) -> Block:
    """A block of a static tree where acceptance does not depend on the context (Sequoia).

    Args:
        shape: the tree.
        shares: the probability with which the first, second, … child of a node is accepted.
    """
    return Block(
        sum(count_levels(shape)),
        _expanded(shape),
        _reach_leaf(shape, shares),
        find_value(shape, shares),
    )


def find_value(shape: Shape, shares: Sequence[float]) -> float:
    """Expected tokens per pass of the target."""
    children = zip(shares, shape, strict=False)
    return 1 + sum(share * find_value(child, shares) for share, child in children)


def _reach_leaf(shape: Shape, shares: Sequence[float]) -> float:
    children = zip(shares, shape, strict=False)
    return sum(share * _reach_leaf(child, shares) for share, child in children) if shape else 1.0


@cache
def _expanded(shape: Shape) -> tuple[int, ...]:
    """Number of nodes with children of each level."""
    widths, level = [], [shape]
    while expanded := [node for node in level if node]:
        widths.append(len(expanded))
        level = [child for node in expanded for child in node]
    return tuple(widths)


def best_trees(shares: Sequence[float], nodes: int, levels: int) -> dict[tuple[int, int], Shape]:
    """The trees of the largest value by Sequoia's dynamic program (arXiv 2402.12374).

    Args:
        shares: the probability with which the first, second, … child of a node is accepted.
        nodes: maximum number of nodes, the root included.
        levels: maximum number of levels, the root's included.

    Returns:
        By number of nodes and maximum number of levels, where there is such a tree.
    """

    @cache
    def with_children(count: int, depth: int, children: int) -> tuple[float, Shape] | None:
        """The best tree of exactly ``count`` nodes whose root has exactly ``children``."""
        if not children:
            return (1.0, ()) if count == 1 else None
        if depth == 1:
            return None
        found = None
        for rest in range(1, count):
            before = with_children(rest, depth, children - 1)
            last = best(count - rest, depth - 1)
            if before and last:
                value = before[0] + shares[children - 1] * last[0]
                if found is None or value > found[0]:
                    found = value, (*before[1], last[1])
        return found

    @cache
    def best(count: int, depth: int) -> tuple[float, Shape] | None:
        """The best tree of exactly ``count`` nodes in at most ``depth`` levels."""
        each = [with_children(count, depth, children) for children in range(len(shares) + 1)]
        return max((tree for tree in each if tree), key=lambda tree: tree[0], default=None)

    trees = {
        (count, depth): best(count, depth)
        for count in range(1, nodes + 1)
        for depth in range(1, min(levels, count) + 1)
    }
    return {at: tree[1] for at, tree in trees.items() if tree}


def choose_shape(
    shapes: Iterable[Shape], shares: Sequence[float], machine: Machine, carries: bool
) -> Shape:
    """The static tree whose expected time per token is the smallest on a machine."""

    def time_per_token(shape: Shape) -> float:
        block = expect(shape, shares)
        return machine.cost(block, carries) / block.tokens

    return min(shapes, key=time_per_token)


def list_children(shape: Shape) -> tuple[int, ...]:
    """A tree as the constant ``draft_tree`` writes it: the children of each node, by level."""
    counts, level = [], [shape]
    while level:
        counts += [len(node) for node in level]
        level = [child for node in level for child in node]
    while counts and not counts[-1]:
        counts.pop()
    return tuple(counts)
