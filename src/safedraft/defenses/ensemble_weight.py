"""A fixed mixture of both models: the rule behind Transformers' ``assistant_ensemble_weight``.

Speculative decoding that verifies against v = w P + (1 - w) q, which is the composite of strength
1 - w over the whole vocabulary, with no sample space and no switch. As there, the bonus token after
a block that matched throughout is the target's own, so that v decides the drafted positions only
and the reply depends on where blocks end.
"""

from __future__ import annotations

from torch import Tensor

from safedraft.core.decode import Decoder
from safedraft.core.errors import SafeDraftError
from safedraft.defenses.blockwise import Rule, blockwise

WEIGHT = 0.7
"""w: the target's share."""


class Mixture(Rule):
    """Each drafted position is decided by v = w P + (1 - w) q."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.strength = 1 - weight

    def scores(self, p: Tensor, q: Tensor) -> Tensor:
        """The distribution v, ``[V]``."""
        return self.weight * p + self.strength * q


def ensemble_weight(weight: float = WEIGHT) -> Decoder:
    """The decoder for one w.

    Args:
        weight: between 0 and 1, both excluded.

    Raises:
        SafeDraftError: the weight is outside that range.
    """
    if not 0 < weight < 1:
        raise SafeDraftError(f"the ensemble weight must lie between 0 and 1, not be {weight}")
    return blockwise(lambda config: Mixture(weight), bonus=True)
