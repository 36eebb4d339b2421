"""Plain speculative decoding: the target's own text, faster, and with the target's own weaknesses.

Leviathan, Kalman and Matias, arXiv 2211.17192 (Algorithm 1). Every reply is distributed exactly as
the target's alone. The token after a block that matched throughout is a bonus that the target draws
by itself: what SSD must never do is harmless where the draft has no say in what is said.
"""

from __future__ import annotations

from torch import Tensor

from safedraft.defenses.blockwise import Rule, blockwise


class Lossless(Rule):
    """Each position is the target's: its best token, or accept-or-correct against P."""

    def scores(self, p: Tensor, q: Tensor) -> Tensor:
        """P itself."""
        return p


speculative = blockwise(lambda config: Lossless(), bonus=True)
"""As ``decode``, with P in place of the composite."""
