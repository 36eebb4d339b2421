"""A forward pass over packed examples: one row without padding, with logits at labels only.

With a large vocabulary, logits at every position would take most of the time and memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from safedraft.training.examples import Example


def compute_label_logits(model: torch.nn.Module, batch: Sequence[Example]) -> Tensor:
    """Compute logits at the labeled positions of all examples, in order.

    Returns:
        float32, shape (N, rows of the output layer).
    """
    import torch

    device = next(model.parameters()).device
    ids = [token for example in batch for token in example.ids]
    positions = [at for example in batch for at in range(len(example.ids))]
    labeled: list[int] = []
    end = 0
    for example in batch:
        end += len(example.ids)
        labeled += range(end - len(example.labels), end)
    output = model(
        input_ids=torch.tensor([ids], device=device),
        # Transformers masks attention between examples where position ids restart.
        position_ids=torch.tensor([positions], device=device),
        logits_to_keep=torch.tensor(labeled, device=device),
        use_cache=False,
    )
    logits: Tensor = output.logits[0].float()
    return logits
