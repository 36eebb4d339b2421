"""A tree of drafted tokens, which sessions read."""

from __future__ import annotations

TREE = [-1, 0, 1, 0, -1, 4, 3, 3, 2]
"""For each node, the number of the node that it follows; -1: the token before the tree."""


def path_to(node: int) -> list[int]:
    """The numbers of a node's ancestors and its own, the first one first."""
    return [] if node < 0 else [*path_to(TREE[node]), node]
