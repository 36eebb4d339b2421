"""Scripted models: logits are a function of the tokens so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safedraft.engines.scripted import Script

VOCABULARY = 16
"""Number of tokens of the models that ``says`` makes."""


class RandomModel:
    """Logits that follow from the last few tokens through a seeded hash: exact and instant.

    ``shared`` of the logits come from a table that models of the same ``family`` have in common, so
    that two of them agree more or less often. With ``levels``, logits are multiples of one part in
    so many, which makes ties.
    """

    def __init__(
        self, seed: int, vocabulary: int, shared: float = 0.0, family: int = 0, levels: int = 0
    ) -> None:
        self.seed, self.family, self.levels = seed, family, levels
        self.vocabulary, self.shared = vocabulary, shared
        self._known: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, ids: Sequence[int]) -> Tensor:
        tail = tuple(ids[-3:])
        if tail not in self._known:
            own, common = (self._table(seed, tail) for seed in (self.seed, self.family))
            logits = 3 * (self.shared * common + (1 - self.shared) * own)
            if self.levels:
                logits = (logits * self.levels).round() / self.levels
            self._known[tail] = logits
        return self._known[tail]

    def _table(self, seed: int, tail: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((seed, *tail)) & 0x7FFFFFFF)
        return torch.randn(self.vocabulary, generator=generator)


def constant(logits: Sequence[float] | Tensor) -> Script:
    """A model that always says the same."""
    values = torch.as_tensor(logits, dtype=torch.float32)
    return lambda ids: values


def says(text: Sequence[int], prompt: int) -> Script:
    """A model that continues a prompt of that length with ``text``, over and over."""

    def script(ids: Sequence[int]) -> Tensor:
        logits = torch.linspace(1, 0, VOCABULARY)
        logits[text[(len(ids) - prompt) % len(text)]] = 9.0
        return logits

    return script


def logits_of(p: Sequence[float]) -> Tensor:
    """Logits whose softmax is ``p``; impossible tokens get a very small one."""
    return torch.tensor(p).clamp(min=1e-30).log()
