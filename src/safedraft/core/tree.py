"""Trees of drafted tokens: their nodes, and the choice of the nodes to draft.

A chain is a tree whose nodes have one child each. The shape of a tree changes the speed and
nothing else, since every position is decided before its token is looked up among the children.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

from safedraft.core.config import DraftingConfig
from safedraft.core.decide import Draft
from safedraft.core.errors import FormError
from safedraft.core.generation import Passes
from safedraft.core.rows import Place
from safedraft.core.session import Pass, Session


class Node:
    """A token, and the known facts about the position after it.

    Args:
        token: the token.
        parent: the node before it; None for the root, the last decided token.
        probability: q of the token, 1 for the root.
        slot: the number of the node in a fixed tree, level by level from the root, 0.
    """

    __slots__ = (
        "children",
        "dead_end",
        "depth",
        "draft",
        "parent",
        "probability",
        "score",
        "slot",
        "target",
        "token",
    )

    def __init__(
        self, token: int, parent: Node | None = None, probability: float = 1.0, slot: int = 0
    ) -> None:
        self.token, self.parent, self.probability = token, parent, probability
        self.slot = slot
        self.depth: int = parent.depth + 1 if parent else 0
        self.score: float = parent.score * probability if parent else 1.0
        """Product of q over the tokens after the root."""
        self.children: list[Node] = []
        self.draft: Draft | None = None
        """The draft's own proposal for the position after the token."""
        self.target: Place | None = None
        """The target's distribution P there."""
        self.dead_end: FormError | None = None
        """Why no token can be chosen there."""

    def path(self) -> list[int]:
        """The tokens after the root, up to this one."""
        tokens, node = [], self
        while node.parent:
            tokens.append(node.token)
            node = node.parent
        return tokens[::-1]

    def child(self, token: int) -> Node | None:
        """The child that is ``token``; None if it was not drafted."""
        return next((child for child in self.children if child.token == token), None)


class Tree:
    """The drafted tokens of a block, and those of its tokens that are decided.

    Args:
        token: the root, the last decided token.
    """

    def __init__(self, token: int) -> None:
        self.root = self.last = Node(token)
        """``last`` is the node that was decided last."""
        self.path: list[Node] = []
        """Decided nodes after the root, drafted or not."""
        self.nodes: list[Node] = []
        """Drafted nodes after the root; each comes after its parent."""
        self.frontier: list[Node] = []
        """Nodes after which the draft continues to propose tokens."""
        self._room = 0  # for more nodes

    def plant(self, room: int) -> None:
        """Begin a tree of at most ``room`` drafted tokens."""
        self._room = room
        self.frontier = [self.root] if room else []

    def grow(self, config: DraftingConfig, end: Collection[int]) -> None:
        """Draft children of the frontier, whose proposals are known.

        Args:
            config: constants of drafting.
            end: tokens that end the reply, after which nothing is drafted.
        """
        if shape := config.draft_tree:
            children = fill(self.frontier, self._room, shape)
        else:
            children = grow(self.frontier, self._room, config.draft_tree_threshold)
        self.nodes += children
        self._room -= len(children)
        sure = [node for node in children if node.probability >= config.draft_confidence]
        nodes = [node for node in sure if node.token not in end]
        nodes = [node for node in nodes if not shape or find_slots(shape, node.slot)]
        enough = sum(node.score for node in nodes) >= config.draft_tree_stop
        self.frontier = nodes if self._room and enough else []

    def advance(self, token: int) -> None:
        """Go to the decided token, whether it was drafted or not."""
        self.last = self.last.child(token) or Node(token, self.last)
        self.path.append(self.last)

    def restart(self) -> None:
        """Make the last decided token the root, and forget the others."""
        target, self.path, self.nodes = self.last.target, [], []
        self.root = self.last = Node(self.last.token)
        self.root.target = target


class ModelProgress:
    """The progress of one of the two models in reading a request.

    Args:
        session: its session.
        prompt: its prompt, at least one token.
        passes: counts its passes.
    """

    def __init__(self, session: Session, prompt: Sequence[int], passes: Passes) -> None:
        self.session, self.passes = session, passes
        self.unseen = [*prompt]
        """Decided tokens that the session has not seen."""
        self._nodes: list[Node] = []  # open in the session

    def read(self, nodes: Sequence[Node]) -> Pass:
        """Make the pass that computes the distributions after ``nodes``.

        The root is the last unseen token, and all other nodes follow it.
        """
        later = [node for node in nodes if node.parent]
        self._nodes += later
        numbers = {node: number for number, node in enumerate(self._nodes)}
        parents = [numbers.get(node.parent, -1) for node in later if node.parent]
        tokens = [*self.unseen, *(node.token for node in later)]
        self.unseen.clear()
        return Pass(self.session, tokens, len(nodes), parents)

    def take_back(self, token: int) -> None:
        """Make the last decided token an unseen one, if the session has seen all of them."""
        if not self.unseen:
            self.session.rewind(1)
            self.unseen.append(token)

    def settle(self, path: Sequence[Node]) -> None:
        """Forget all nodes but those that were decided, which are on ``path``."""
        held = [node for node in path if node in self._nodes]
        self.session.keep([self._nodes.index(node) for node in held])
        self.unseen += [node.token for node in path[len(held) :]]
        self._nodes.clear()


def grow(level: Sequence[Node], room: int, threshold: float) -> list[Node]:
    """Append children to the nodes of a level.

    The draft's own proposal after the first node is always one of them, so that a tree is never
    shorter than a chain. Further proposals are added, the best first, if the product of q on their
    path is at least ``threshold``; with a threshold of 1 the tree is a chain.

    Args:
        level: nodes with the draft's proposals.
        room: maximum number of children, at least 1.
        threshold: the smallest product of q of a further child.

    Returns:
        The children, of which the first one continues the chain.
    """
    nodes = [node for node in level if not node.dead_end]
    proposed = [child for node in nodes for child in _propose(node, threshold)]
    others = [child for child in proposed[1:] if child.score >= threshold]
    others.sort(key=lambda child: child.score, reverse=True)
    return _attach([*proposed[:1], *others[: room - 1]])


def find_slots(shape: Sequence[int], slot: int) -> range:
    """The numbers of a node's children in a fixed tree.

    Args:
        shape: the number of children of each node, level by level (``draft_tree``).
        slot: the node's own number, 0 for the root.
    """
    first = 1 + sum(shape[:slot])
    return range(first, first + (shape[slot] if slot < len(shape) else 0))


def fill(level: Sequence[Node], room: int, shape: Sequence[int]) -> list[Node]:
    """Append the children that a fixed tree has after the nodes of a level.

    Args:
        level: nodes with the draft's proposals.
        room: maximum number of children, at least 1: the others, at the end, are left out.
        shape: the number of children of each node, level by level.
    """
    children: list[Node] = []
    for node in [node for node in level if not node.dead_end]:
        assert node.draft is not None
        slots = find_slots(shape, node.slot)
        for slot, (token, chance) in zip(slots, node.draft.proposals(), strict=False):
            children.append(Node(token, node, chance, slot))
    return _attach(children[:room])


def _attach(children: list[Node]) -> list[Node]:
    """Append nodes to the children of their parents, and return them."""
    for child in children:
        assert child.parent is not None
        child.parent.children.append(child)
    return children


def _propose(node: Node, threshold: float) -> Iterator[Node]:
    """The draft's own proposal after a node, and its best other tokens down to a score."""
    assert node.draft is not None
    yield Node(node.draft.token, node, node.draft.probability)
    least = threshold / node.score if node.score else math.inf
    for token, chance in node.draft.others(least):
        yield Node(token, node, chance)
