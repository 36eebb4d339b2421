"""The risk of a request: the probability that it is harmful, read from the last hidden states.

This is not part of the paper. Where the assistant's turn begins, and where the request's text ends,
a small function of the inputs of the output layers separates harmful requests from harmless ones,
however the answer has begun. The same tokens after a part of the reply collect the evidence of the
whole conversation so far (Any-Depth Alignment, arXiv 2510.18081), so that the risk can be read
again while the reply grows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
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
    reads_text: bool = False
    """Whether the state at the end of the text is read too; it follows that where the turn of the
    assistant begins, for each model."""

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
    """Tokens after which the hidden states of one model are read."""

    header: tuple[int, ...]
    """They end a turn and begin one of the assistant; the text ends before them."""
    question: tuple[int, ...] = ()
    """The model's prompt up to where the reply begins; empty if only token ids are known, and the
    risk is then read after the whole prompt and ``header``."""

    def offsets(self, *, reads_text: bool) -> tuple[int, ...]:
        """Distances from the last token of those at which the states are read."""
        return (0, len(self.header)) if reads_text else (0,)


@dataclass(frozen=True, eq=False)
class RiskContext:
    """The probe for the risk of one request, and the tokens after which it reads each model."""

    probe: RiskProbe
    readings: Mapping[Which, Reading]
    """The tokens of each model that the probe reads."""

    def offsets(self, which: Which) -> tuple[int, ...]:
        """Distances from the last token of those at which a model's states are read."""
        return self.readings[which].offsets(reads_text=self.probe.reads_text)

    def places(self, which: Which) -> list[int]:
        """Places in a model's question at which its states are read, the last one first."""
        end = len(self.readings[which].question) - 1
        return [end - offset for offset in self.offsets(which)]


def pick_states(hidden: Tensor, offsets: Sequence[int]) -> Tensor:
    """Join the states at some distances from the last one, ``[H]``; ``hidden`` is ``[n, H]``."""
    return torch.cat([hidden[-1 - offset] for offset in offsets])
