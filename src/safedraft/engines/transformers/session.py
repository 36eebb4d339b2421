"""A session with a rewindable cache in a causal language model from Transformers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safedraft.core.errors import BrokenModelError, SafeDraftError
from safedraft.models.rewindable import empty_cache, why_not_rewindable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFILL_CHUNK = 512
"""Number of prompt tokens in one forward pass, which bounds the memory of activations."""


class TransformersSession:
    """One sequence in one model; ``rewind`` shortens the cache in place.

    Args:
        model: the model, on its own device, in its own dtype.
        name: its name in error messages.
        vocabulary: V, the size of the shared vocabulary; logits of further ids are dropped.
        device: the device of the returned logits; the model's own by default.

    Raises:
        SafeDraftError: the model's state cannot be rewound.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str,
        vocabulary: int,
        device: torch.device | None = None,
    ) -> None:
        if reason := why_not_rewindable(model.config, type(model)):
            raise SafeDraftError(f"{name}: {reason}")
        self.name = name
        self._model = model
        self._vocabulary = vocabulary
        self._device = device or model.device
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._cache = empty_cache(model.config)
        self._hidden: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of tokens in the cache."""
        return int(self._cache.get_seq_length())

    @torch.inference_mode()
    def forward(self, ids: Sequence[int], keep: int) -> Tensor:
        """Append ``ids``; return float32 logits after the last ``keep`` ids, ``[keep, V]``."""
        head = max(len(ids) - keep, 0) // PREFILL_CHUNK * PREFILL_CHUNK
        for start in range(0, head, PREFILL_CHUNK):
            self._run(ids[start : start + PREFILL_CHUNK], 1)
        with self._watch_output_layer() as inputs:
            logits = self._run(ids[head:], keep)
        self._hidden = inputs[-1][0, -keep:] if inputs else None
        return logits[-keep:, : self._vocabulary].to(self._device, torch.float32)

    @property
    def hidden(self) -> Tensor:
        """Hidden states that the last pass gave the output layer, ``[keep, H]`` in float32.

        Raises:
            BrokenModelError: the model computes its logits without a module.
        """
        if self._hidden is None:
            raise BrokenModelError(
                f"{self.name} does not show its last hidden state, from which the risk is read: "
                'decode with rule="ssd"'
            )
        return self._hidden.float()

    def rewind(self, count: int) -> None:
        """Remove the last ``count`` tokens from the cache, in sliding-window layers too."""
        self._cache.crop(-count)

    @contextmanager
    def _watch_output_layer(self) -> Iterator[list[Tensor]]:
        """Collect what the output layer is given."""
        inputs: list[Tensor] = []
        layer = self._model.get_output_embeddings()
        if not isinstance(layer, torch.nn.Module):
            yield inputs
            return
        hook = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        try:
            yield inputs
        finally:
            hook.remove()

    def _run(self, ids: Sequence[int], keep: int) -> Tensor:
        extra: dict[str, Any] = {"logits_to_keep": keep} if self._keeps_logits else {}
        before = self.length
        output = self._model(
            input_ids=torch.tensor([ids], device=self._model.device),
            past_key_values=self._cache,
            use_cache=True,
            **extra,
        )
        if self.length != before + len(ids):
            raise BrokenModelError(
                f"{self.name} does not keep its cache: it cannot be decoded here"
            )
        logits: Tensor = output.logits[0]
        return logits
