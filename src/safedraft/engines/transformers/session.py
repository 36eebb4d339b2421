"""A session with a rewindable cache in a causal language model from Transformers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safedraft.core.errors import BrokenModelError, SafeDraftError
from safedraft.core.session import OpenNodes
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
        why_no_trees: why the model cannot read a tree; None if it can.

    Raises:
        SafeDraftError: the model's state cannot be rewound.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str,
        vocabulary: int,
        device: torch.device | None = None,
        why_no_trees: str | None = None,
    ) -> None:
        if reason := why_not_rewindable(model.config, type(model)):
            raise SafeDraftError(f"{name}: {reason}")
        self.name = name
        self._model = model
        self._vocabulary = vocabulary
        self._device = device or model.device
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._cache = empty_cache(model.config)
        self._why_no_trees = why_no_trees
        self._open = OpenNodes()
        self._hidden: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of tokens in the cache, those of open nodes included."""
        return int(self._cache.get_seq_length())

    @torch.inference_mode()
    def forward(self, ids: Sequence[int], keep: int, parents: Sequence[int] = ()) -> Tensor:
        """Append ``ids``; return float32 logits after the last ``keep`` ids, ``[keep, V]``.

        ``parents`` are those of ``Pass``.

        Raises:
            SafeDraftError: the nodes form more than a chain, and the model cannot read a tree.
        """
        head = max(len(ids) - max(keep, len(parents)), 0) // PREFILL_CHUNK * PREFILL_CHUNK
        for start in range(0, head, PREFILL_CHUNK):
            self._run(ids[start : start + PREFILL_CHUNK], 1)
        self._open.append(parents)
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

    @torch.inference_mode()
    def keep(self, path: Sequence[int]) -> None:
        """Keep a path of the open nodes: its keys and values move together."""
        first = self.length - len(self._open)
        if [*path] != [*range(len(path))]:
            taken = first + torch.tensor(path)
            for layer in filter(lambda layer: layer.is_initialized, self._cache.layers):
                for states in (layer.keys, layer.values):
                    places = taken.to(states.device)
                    states[..., first : first + len(path), :] = states.index_select(-2, places)
        self.rewind(len(self._open) - len(path))
        self._open.clear()

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
        if not self._open.is_chain:
            if self._why_no_trees:
                raise SafeDraftError(f"{self.name}: {self._why_no_trees}")
            extra |= self._arrange_tree(before + len(ids), len(ids))
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

    def _arrange_tree(self, length: int, rows: int) -> dict[str, Tensor]:
        """The mask ``[1, 1, rows, length]`` and the positions of the last tokens of a tree."""
        first, start = length - len(self._open), length - rows
        sees = torch.ones(rows, length, dtype=torch.bool).tril(start)
        positions = torch.arange(start, length)
        for place, path in enumerate(self._open.paths, first):
            if place >= start:
                sees[place - start, first:] = False
                sees[place - start, [first + node for node in path]] = True
                positions[place - start] = first + len(path) - 1
        hidden = torch.zeros(1, 1, rows, length, dtype=self._model.dtype)
        hidden.masked_fill_(~sees, torch.finfo(hidden.dtype).min)
        device = self._model.device
        return {
            "attention_mask": hidden.to(device),
            "position_ids": positions[None].to(device),
        }
