"""Trees of drafted tokens: the best static ones, and what blocks of any shape would have decided.

A block of the decoding loop with a tree in place of a chain decides each position as a chain does,
and then looks whether the token is among the drafted children. So what a shape would have gained
follows from recorded replies: which of the draft's proposals each token was, and how likely the
draft held it. Nodes off the recorded path have no recorded distribution; that of the path at the
same depth stands for theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol, cast

from safedraft.core.config import DraftingConfig
from safedraft.core.decide import Draft
from safedraft.core.tree import Tree

Shape = tuple["Shape", ...]
"""A node of a static tree: its children, in the order in which the draft proposes them."""

DEEPEST = 16
"""Maximum number of levels below the root of a static tree."""

_ENDS = range(100, 200)
"""Tokens of simulated trees that end the reply. A token is the number of its proposal, from 1, and
as many more as this begins with if it ends the reply."""


class Child(NamedTuple):
    """A token that the draft proposes at a position."""

    probability: float
    """q of the token."""
    ends: bool
    """Whether the token ends the reply; nothing is drafted after it."""


class Position(NamedTuple):
    """A decided position of a recorded reply."""

    scheme: str | None
    rank: int
    """The rank of the decided token in q, from 1."""
    proposal: int
    """Which of the draft's proposals the decided token is, from 1: the first is the drafted token,
    the others are q's best tokens without it."""
    largest: float
    """q's largest probability."""
    path_score: float
    """Product of q over the decided tokens from the beginning of the recorded block to this one."""
    children: tuple[Child, ...]
    """The draft's first proposals."""


class Block(NamedTuple):
    """What one pass of the target costs and decides; fractions where it is expected."""

    rows: int
    """The rows of the target's pass: the last committed token and every node."""
    widths: tuple[int, ...]
    """Rows of each pass of the draft."""
    leaf: float
    """How likely another pass of the draft reads the leaf at which the walk ends."""
    tokens: float
    """Decided tokens."""


class Machine(NamedTuple):
    """What passes take, in any unit of time."""

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
    """Time of some rows; more than were measured take several passes."""
    passes, rest = divmod(rows, len(times))
    return passes * times[-1] + (times[rest - 1] if rest else 0.0)


def share_of_ranks(ranks: Sequence[int], most: int) -> list[float]:
    """Share of each rank from 1 to ``most``."""
    return [ranks.count(rank) / max(len(ranks), 1) for rank in range(1, most + 1)]


def chain(length: int) -> Shape:
    """The tree of so many drafted tokens in a row."""
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


@cache
def _cut(shape: Shape, depth: int) -> Shape:
    """The tree without what is deeper than so many levels below its root."""
    return tuple(_cut(child, depth - 1) for child in shape) if depth else ()


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


class Policy(Protocol):
    """How the tokens of a block are drafted."""

    @property
    def most_rows(self) -> int:
        """Maximum number of rows of the target's pass."""
        ...

    def draft(self, ahead: Sequence[Position], decided: int) -> Block:
        """The block that begins a recorded reply's rest.

        Args:
            ahead: the positions to come, at least one.
            decided: number of tokens that the last block decided; 0 if there was none.
        """
        ...


@dataclass(frozen=True)
class Drafting:
    """Chains and trees as the decoding loop drafts them: they follow the draft's confidence."""

    config: DraftingConfig

    def __str__(self) -> str:
        own = self.config
        shown = (
            f"{own.draft_tokens} tokens, confidence {own.draft_confidence:g}, "
            f"growth {own.draft_growth:g}"
        )
        if self.branches:
            shown += f", threshold {own.draft_tree_threshold:g}, stop {own.draft_tree_stop:g}"
        return shown

    @property
    def branches(self) -> bool:
        """Whether a block can be another tree than a chain."""
        return self.config.draft_tree_threshold < 1

    @property
    def most_rows(self) -> int:
        """The last committed token and T drafts."""
        return self.config.draft_tokens + 1

    def draft(self, ahead: Sequence[Position], decided: int) -> Block:
        """Grow a tree as the decoding loop does, and walk down."""
        tree, widths = Tree(0), []
        tree.plant(min(self.config.draft_length(decided), len(ahead)))
        while tree.frontier:
            widths.append(len(tree.frontier))
            for node in tree.frontier:
                node.draft = cast("Draft", _Recorded(ahead[node.depth].children))
            tree.grow(self.config, _ENDS)
        node = tree.root
        while node.draft and (child := node.child(_decided(ahead[node.depth]))):
            node = child
        rows = len(tree.nodes) + 1
        return _block(rows, tuple(widths), node.depth, not node.draft, ahead)


class _Recorded(NamedTuple):
    """What the draft proposed at a recorded position, in place of a ``Draft``."""

    children: tuple[Child, ...]

    @property
    def token(self) -> int:
        return _token(1, self.children[0])

    @property
    def probability(self) -> float:
        return self.children[0].probability

    def others(self, least: float) -> Iterator[tuple[int, float]]:
        for number, child in enumerate(self.children[1:], 2):
            if child.probability >= least:
                yield _token(number, child), child.probability


def _token(number: int, child: Child) -> int:
    return number + _ENDS.start * child.ends


def _decided(position: Position) -> int:
    """The token of the position; 0 if it is none of the recorded proposals."""
    at = position.proposal
    return _token(at, position.children[at - 1]) if at <= len(position.children) else 0


@dataclass(frozen=True)
class StaticTree:
    """The same tree in every block."""

    shape: Shape

    def __str__(self) -> str:
        return "·".join(map(str, count_levels(self.shape)))

    @property
    def most_rows(self) -> int:
        """Every node is a row."""
        return sum(count_levels(self.shape))

    def draft(self, ahead: Sequence[Position], decided: int) -> Block:
        """Walk down the tree, which is no deeper than the reply is long."""
        node = shape = _cut(self.shape, min(len(ahead), DEEPEST))
        accepted = 0
        while node and ahead[accepted].proposal <= len(node):
            node = node[ahead[accepted].proposal - 1]
            accepted += 1
        return _block(sum(count_levels(shape)), _expanded(shape), accepted, not node, ahead)


def _block(
    rows: int,
    widths: tuple[int, ...],
    accepted: int,
    at_leaf: bool,
    ahead: Sequence[Position],
) -> Block:
    """A block whose walk accepted some nodes; one token more is decided unless the reply ends."""
    leaf = at_leaf and accepted < len(ahead)
    return Block(rows, widths, float(leaf), min(accepted + 1, len(ahead)))


def simulate(reply: Sequence[Position], policy: Policy) -> list[Block]:
    """The blocks in which a policy would have decided a recorded reply."""
    blocks: list[Block] = []
    start = decided = 0
    while start < len(reply):
        block = policy.draft(reply[start:], decided)
        blocks.append(block)
        decided = int(block.tokens)
        start += decided
    return blocks


def cross_fit(costs: Mapping[Policy, Sequence[float]], halves: Sequence[int]) -> list[float]:
    """The cost of each reply under the policy that is the cheapest on the other half of them.

    Args:
        costs: by policy, of each reply.
        halves: to which half each reply belongs; there are replies of both.
    """
    chosen = {half: choose_policy(costs, [other != half for other in halves]) for half in (0, 1)}
    return [costs[chosen[half]][at] for at, half in enumerate(halves)]


def choose_policy(costs: Mapping[Policy, Sequence[float]], counted: Sequence[bool]) -> Policy:
    """The policy that is the cheapest on the replies that count."""
    return min(
        costs,
        key=lambda policy: sum(
            cost for cost, counts in zip(costs[policy], counted, strict=True) if counts
        ),
    )
