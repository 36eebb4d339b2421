"""Simulated blocks of any shape, which decide the tokens of recorded replies.

A block of the decoding loop with a tree in place of a chain decides each position as a chain does,
and then looks whether the token is among the drafted children. So the gain of a shape follows from
recorded replies: from the rank of each token among the draft's proposals, and from its probability
in q. Nodes off the recorded path have no recorded distribution; the distribution of the path at the
same depth is used for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from safedraft.core.config import DraftingConfig, show_constant
from safedraft.core.decide import Draft
from safedraft.core.tree import Tree
from safedraft.evaluation.trees.shapes import Block

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
    """Rank of the decided token among the draft's proposals, from 1: the first is the drafted
    token, the others are the best other tokens of q."""
    largest: float
    """The largest probability of q."""
    path_score: float
    """Product of q over the decided tokens from the beginning of the recorded block to this one."""
    children: tuple[Child, ...]
    """The draft's first proposals."""


@dataclass(frozen=True)
class Drafting:
    """Chains and trees as the decoding loop drafts them."""

    config: DraftingConfig

    def __str__(self) -> str:
        own = self.config
        if own.draft_tree:
            return f"tree {show_constant(own.draft_tree)}"
        shown = (
            f"{own.draft_tokens} tokens, confidence {own.draft_confidence:g}, "
            f"growth {own.draft_growth:g}"
        )
        if own.branches:
            shown += f", threshold {own.draft_tree_threshold:g}, stop {own.draft_tree_stop:g}"
        return shown

    @property
    def most_rows(self) -> int:
        """Maximum number of rows of the target's pass."""
        return (sum(self.config.draft_tree) or self.config.draft_tokens) + 1

    def draft(self, ahead: Sequence[Position], decided: int) -> Block:
        """The block that begins a recorded reply's rest: a tree is grown, and walked down.

        Args:
            ahead: the positions to come, at least one.
            decided: number of tokens that the last block decided; 0 if there was none.
        """
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
        leaf = not node.draft and node.depth < len(ahead)
        tokens = min(node.depth + 1, len(ahead))  # one more is decided unless the reply ends
        return Block(len(tree.nodes) + 1, tuple(widths), float(leaf), tokens)


class _Recorded(NamedTuple):
    """The draft's proposals at a recorded position, in place of a ``Draft``."""

    children: tuple[Child, ...]

    @property
    def token(self) -> int:
        return _token(1, self.children[0])

    @property
    def probability(self) -> float:
        return self.children[0].probability

    def proposals(self) -> Iterator[tuple[int, float]]:
        yield self.token, self.probability
        yield from self.others(0.0)

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


def simulate(reply: Sequence[Position], policy: Drafting) -> list[Block]:
    """Simulate the blocks in which a policy would have decided a recorded reply."""
    blocks: list[Block] = []
    start = decided = 0
    while start < len(reply):
        block = policy.draft(reply[start:], decided)
        blocks.append(block)
        decided = int(block.tokens)
        start += decided
    return blocks


def cross_fit(costs: Mapping[Drafting, Sequence[float]], halves: Sequence[int]) -> list[float]:
    """The cost of each reply under the policy that is the cheapest on the other half of them.

    Args:
        costs: by policy, of each reply.
        halves: to which half each reply belongs; there are replies of both.
    """
    chosen = {half: choose_policy(costs, [other != half for other in halves]) for half in (0, 1)}
    return [costs[chosen[half]][at] for at, half in enumerate(halves)]


def choose_policy(costs: Mapping[Drafting, Sequence[float]], counted: Sequence[bool]) -> Drafting:
    """The policy that is the cheapest on the replies that count."""
    return min(
        costs,
        key=lambda policy: sum(
            cost for cost, counts in zip(costs[policy], counted, strict=True) if counts
        ),
    )
