"""The risk of a request: the probability that it is harmful, read from the last hidden states.

This is not part of the paper. Where the assistant's turn begins, a small function of the inputs of
the output layers separates harmful requests from harmless ones, however the answer has begun.
The same tokens after a part of the reply collect the evidence of the whole conversation so far
(Any-Depth Alignment, arXiv 2510.18081), so that the risk can be read again while the reply grows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from safedraft.core.errors import BrokenModelError
from safedraft.core.session import Which


class HiddenLayer(NamedTuple):
    """The hidden units of a network: the positive part of a linear function of the states."""

    weight: Tensor
    """``[U, H]`` in float32."""
    bias: Tensor
    """``[U]`` in float32."""


@dataclass(frozen=True, eq=False)
class RiskProbe:
    """A classifier of the last hidden states of one model, or of two.

    It is a logistic regression on the states or, with a hidden layer, on its units.
    """

    weight: Tensor
    """``[H]`` in float32, H the sum of the sizes of the states; ``[U]`` with a hidden layer."""
    bias: float
    reads: tuple[Which, ...] = ("draft",)
    """The models that are read, in the order of their states."""
    hidden: HiddenLayer | None = None

    @property
    def width(self) -> int:
        """H, the size of the states that are read."""
        return (self.weight if self.hidden is None else self.hidden.weight).shape[-1]

    def logits(self, states: Tensor) -> Tensor:
        """The logarithms of the odds that requests are harmful, ``[n]``.

        Args:
            states: inputs of the output layers at each position, ``[n, H]`` in float32.
        """
        if self.hidden is not None:
            states = (states @ self.hidden.weight.T + self.hidden.bias).relu()
        return states @ self.weight + self.bias

    def read(self, state: Tensor) -> float:
        """The probability that the request is harmful.

        Args:
            state: inputs of the output layers at the position, ``[H]`` in float32.

        Raises:
            BrokenModelError: the state is not finite.
        """
        logit = float(self.logits(state.to(self.weight)[None]))
        if not math.isfinite(logit):
            raise BrokenModelError("the hidden state is not finite: the risk is unknown")
        return 1 / (1 + math.exp(-max(min(logit, 60.0), -60.0)))


class Reading(NamedTuple):
    """Tokens after which the hidden state of one model is read."""

    header: tuple[int, ...]
    """They end the assistant's turn and begin another one."""
    question: tuple[int, ...] = ()
    """The model's prompt up to where the reply begins; empty if only token ids are known, and the
    risk is then read after the whole prompt and ``header``."""


@dataclass(frozen=True, eq=False)
class RiskContext:
    """The probe for the risk of one request, and the tokens after which it reads each model."""

    probe: RiskProbe
    readings: Mapping[Which, Reading]
    """The tokens of each model that the probe reads."""
