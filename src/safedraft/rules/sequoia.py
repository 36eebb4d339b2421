"""Sequoia: lossless speculation with trees, whose siblings are tried in rounds of their own.

Chen et al., arXiv 2402.12374. Every reply has exactly the distribution of the target. Where the
draft's first token is rejected, the second and later children of a fixed tree (``draft_tree``) are
tried against the remainder of P. The other rules draw the token first and look it up among the
children; greedily that is the same.

In contrast to the authors' code as many tokens are tried at every position, whether the tree has
them there or not, and the position after a leaf waits for the draft. So a sampled reply depends on
the number of siblings, and not on the lengths of its blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safedraft.core.composite import Scores
from safedraft.core.rows import Rows
from safedraft.core.rule import AfterMatch, State
from safedraft.rules.speculative import Speculative


@dataclass(frozen=True)
class Sequoia(Speculative):
    """The target decides each position: by its best token, or by rounds over drafted children."""

    name: str = "sequoia"
    after_match: AfterMatch = "carry"

    def scores(self, states: Sequence[State], rows: Rows) -> Scores:
        """Score with P, the target's distribution."""
        return super().scores(states, rows)._replace(rounds=True)
