"""Shifts of the logits: penalties on tokens that occurred, and biases of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safedraft.core.config import SamplingParams


class Shifts:
    """The penalties and biases of one reply, in vLLM's order: a ``Constraint``.

    Both models have the same ones, also where their prompts differ.

    Args:
        sampling: gives the penalties and biases.
        prompt: the target's prompt, a begun reply included.
    """

    def __init__(self, sampling: SamplingParams, prompt: Sequence[int]) -> None:
        self._sampling = sampling
        self._prompt = torch.tensor(sorted(set(prompt)), dtype=torch.long)
        self._biased = torch.tensor([*sampling.logit_bias], dtype=torch.long)
        self._biases = torch.tensor([*sampling.logit_bias.values()], dtype=torch.float32)
        self._reply: list[int] = []

    def apply(self, drafts: Sequence[int], logits: Tensor) -> Tensor:
        """See ``Constraint``."""
        sampling, device = self._sampling, logits.device
        shifted = logits.float().index_add(0, self._biased.to(device), self._biases.to(device))
        said = torch.tensor([*self._reply, *drafts], dtype=torch.long)
        counts = said.bincount(minlength=len(logits))
        if (penalty := sampling.repetition_penalty) != 1:
            seen = counts > 0
            seen[self._prompt[self._prompt < len(logits)]] = True
            repeated = torch.where(shifted < 0, shifted * penalty, shifted / penalty)
            shifted = torch.where(seen.to(device), repeated, shifted)
        penalties = sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
        return shifted - penalties.to(device)

    def decide(self, token: int) -> None:
        """See ``Constraint``."""
        self._reply.append(token)
