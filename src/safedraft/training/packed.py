"""One pass over packed examples: one row, positions that start again, logits at labels only.

Nothing is padded, and with a large vocabulary the output layer would otherwise take most of the
time and memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from safedraft.training.examples import Example


def label_logits(model: torch.nn.Module, batch: Sequence[Example]) -> Tensor:
    """Logits at the labelled positions of all examples, in their order.

    Returns:
        float32, shape (N, rows of the output layer).
    """
    import torch

    device = next(model.parameters()).device
    ids = [token for example in batch for token in example.ids]
    positions = [at for example in batch for at in range(len(example.ids))]
    labelled: list[int] = []
    end = 0
    for example in batch:
        end += len(example.ids)
        labelled += range(end - len(example.labels), end)
    output = model(
        input_ids=torch.tensor([ids], device=device),
        # Positions that start again tell Transformers where one example ends: none sees another.
        position_ids=torch.tensor([positions], device=device),
        logits_to_keep=torch.tensor(labelled, device=device),
        use_cache=False,
    )
    logits: Tensor = output.logits[0].float()
    return logits
