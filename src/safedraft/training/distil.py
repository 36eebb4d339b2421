"""Distillation: the target's distributions at every token of its own ordinary answers.

The teacher keeps the target's K most likely tokens per position and adds the remaining probability
as one event, so that the divergence compares two distributions over the same events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from safedraft.training.examples import Example


@dataclass(frozen=True)
class Teacher:
    """The target's K most likely tokens at each of the N positions of every answer."""

    tokens: list[Tensor]
    """Token ids of each answer, int64, shape (N, K)."""
    logs: list[Tensor]
    """Log probabilities of these tokens, float32, shape (N, K)."""
    vocabulary: int
    """V: ids below it are shared; rows above it are padding."""

    def divergence(self, logits: Tensor, answers: Sequence[int]) -> Tensor:
        """Return KL(P || q) of target and draft at every position of the answers, in order.

        Args:
            logits: the draft's logits at all these positions, shape (N, rows).
            answers: the indices of the answers.

        Returns:
            Divergences, shape (N,); non-negative up to rounding.
        """
        import torch

        if not answers:
            return logits.new_zeros(0)
        tokens = torch.cat([self.tokens[at] for at in answers]).to(logits.device)
        target = torch.cat([self.logs[at] for at in answers]).to(logits.device)
        draft = logits[:, : self.vocabulary].log_softmax(-1).gather(-1, tokens)
        target, draft = (torch.cat([logs, _log_rest(logs)], -1) for logs in (target, draft))
        return (target.exp() * (target - draft)).sum(-1)


def compute_teacher(
    model: PreTrainedModel,
    answers: Sequence[Example],
    *,
    vocabulary: int,
    count: int,
    tokens_per_pass: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Teacher:
    """Compute the target's distributions over answers that it gave.

    Args:
        model: the target.
        answers: examples with the target's own prompts; their labeled positions are used.
        vocabulary: V, ids below it are shared with the draft.
        count: K, the number of tokens kept per position.
        tokens_per_pass: maximum number of tokens in a forward pass.
        report: called with the number of answers done and their total number.
    """
    import torch

    from safedraft.training.examples import pack
    from safedraft.training.packed import compute_label_logits

    tokens: list[Tensor] = []
    logs: list[Tensor] = []
    for batch in pack(answers, tokens_per_pass):
        with torch.inference_mode():
            log_probabilities = compute_label_logits(model, batch)[:, :vocabulary].log_softmax(-1)
            likely = log_probabilities.topk(min(count, vocabulary - 1), dim=-1)
        lengths = [len(example.labels) for example in batch]
        tokens += [part.cpu().clone() for part in torch.split(likely.indices, lengths)]
        logs += [part.cpu().clone() for part in torch.split(likely.values, lengths)]
        report(len(tokens), len(answers))
    return Teacher(tokens, logs, vocabulary)


def _log_rest(logs: Tensor) -> Tensor:
    """Return the log of the remaining probability, shape (N, 1), bounded away from -inf."""
    rest = 1 - logs.exp().sum(-1, keepdim=True)
    return rest.clamp_min(1e-8).log()
