"""The risk of a request: how likely it is harmful, read from a model's last hidden state.

Not part of the paper. Where the assistant's turn begins, a linear function of what the output
layer is given tells harmful requests from harmless ones, whatever the answer has begun with.
The same tokens put after a part of the reply gather the evidence of all that was said so far
(Any-Depth Alignment, arXiv 2510.18081), so that the risk can be read again while the reply grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from safedraft.core.errors import BrokenModelError
from safedraft.core.session import Which


@dataclass(frozen=True, eq=False)
class RiskProbe:
    """A logistic regression on a model's last hidden state."""

    weight: Tensor
    """``[H]`` in float32."""
    bias: float

    def read(self, hidden: Tensor) -> float:
        """The probability that the request is harmful.

        Args:
            hidden: what the output layer was given at the position, ``[H]`` in float32.

        Raises:
            BrokenModelError: the state is not finite.
        """
        logit = float(self.weight @ hidden.to(self.weight)) + self.bias
        if not math.isfinite(logit):
            raise BrokenModelError("the hidden state is not finite: the risk is unknown")
        return 1 / (1 + math.exp(-max(min(logit, 60.0), -60.0)))


@dataclass(frozen=True, eq=False)
class RiskContext:
    """What is needed to read the risk of one request."""

    probe: RiskProbe
    header: tuple[int, ...]
    """Tokens that end the assistant's turn and begin another one."""
    question: tuple[int, ...] = ()
    """The model's prompt up to where the reply begins; empty if only token ids are known, and the
    risk is then read after the whole prompt and ``header``."""
    which: Which = "draft"
    """The model that is read; the target only under a rule that drafts nothing."""
