"""The target as a teacher: its distribution at every token of its own ordinary answers.

Tokens that a draft learns one by one tell it what the target says; distributions also tell what it
nearly said, and where it is unsure. Per position the likeliest tokens are kept, and the rest of the
probability as one lump, so that the divergence is of two distributions over the same events.
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
    """What the target holds likely, for each answer of the material.

    K tokens a position; N positions (tokens of the answer) each.
    """

    tokens: list[Tensor]
    """Ids, int64, shape (N, K)."""
    logs: list[Tensor]
    """Logarithms of their probabilities, float32, shape (N, K)."""
    vocabulary: int
    """V: ids below it are shared; rows above it are padding."""

    def divergence(self, logits: Tensor, answers: Sequence[int]) -> Tensor:
        """KL(P || q) of target and draft at every position of the answers, one after the other.

        Args:
            logits: the draft's, shape (N, rows), over all those positions.
            answers: which answers they are.

        Returns:
            Shape (N,), not negative but for rounding.
        """
        import torch

        if not answers:
            return logits.new_zeros(0)
        tokens = torch.cat([self.tokens[at] for at in answers]).to(logits.device)
        target = torch.cat([self.logs[at] for at in answers]).to(logits.device)
        draft = logits[:, : self.vocabulary].log_softmax(-1).gather(-1, tokens)
        target, draft = (torch.cat([logs, _rest(logs)], -1) for logs in (target, draft))
        return (target.exp() * (target - draft)).sum(-1)


def teach(
    model: PreTrainedModel,
    answers: Sequence[Example],
    *,
    vocabulary: int,
    count: int,
    tokens_per_pass: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Teacher:
    """Ask the target for its distributions over answers that it gave.

    Args:
        model: the target.
        answers: under the target's own prompts; the labelled positions are asked for.
        vocabulary: V, ids below it are shared with the draft.
        count: K, how many tokens are kept a position.
        tokens_per_pass: most tokens of a forward pass.
        report: called with how many answers are done, and their number.
    """
    import torch

    from safedraft.training.examples import pack
    from safedraft.training.packed import label_logits

    tokens: list[Tensor] = []
    logs: list[Tensor] = []
    for batch in pack(answers, tokens_per_pass):
        with torch.inference_mode():
            every = label_logits(model, batch)[:, :vocabulary].log_softmax(-1)
            likely = every.topk(min(count, vocabulary - 1), dim=-1)
        lengths = [len(example.labels) for example in batch]
        tokens += [part.cpu().clone() for part in torch.split(likely.indices, lengths)]
        logs += [part.cpu().clone() for part in torch.split(likely.values, lengths)]
        report(len(tokens), len(answers))
    return Teacher(tokens, logs, vocabulary)


def _rest(logs: Tensor) -> Tensor:
    """Logarithm of the probability that is left, shape (N, 1); kept off minus infinity."""
    rest = 1 - logs.exp().sum(-1, keepdim=True)
    return rest.clamp_min(1e-8).log()
