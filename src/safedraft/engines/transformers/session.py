"""Any causal language model that Transformers loads, as a session with a rewindable cache."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safedraft.core.errors import BrokenModel, SafeDraftError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

PREFILL_CHUNK = 512
"""Tokens of a prompt that go through a model at once: bounds the memory of activations."""

_ALWAYS_CAUSAL = {"gpt_neox", "gpt_neox_japanese"}
"""Decoders whose configuration does not call itself one."""


class TransformersSession:
    """One sequence in one model; the cache is never computed twice and is cut back in place.

    Args:
        model: on its own device, in its own dtype.
        name: what errors call it.
        vocabulary: V, the ids shared by target and draft; rows past it are padding and are dropped.
        device: where logits are handed over; the model's own when not given.

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
        from transformers import DynamicCache

        if reason := why_not_rewindable(model.config, type(model)):
            raise SafeDraftError(f"{name}: {reason}")
        self.name = name
        self._model = model
        self._vocabulary = vocabulary
        self._device = device or model.device
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._cache = DynamicCache(config=model.config)
        self._cache.activate_past_recording()

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return int(self._cache.get_seq_length())

    @torch.inference_mode()
    def forward(self, ids: Sequence[int], keep: int) -> Tensor:
        """Append ``ids``; the float32 logits after each of the last ``keep``, ``[keep, V]``."""
        head = max(len(ids) - keep, 0) // PREFILL_CHUNK * PREFILL_CHUNK
        for start in range(0, head, PREFILL_CHUNK):
            self._run(ids[start : start + PREFILL_CHUNK], 1)
        logits = self._run(ids[head:], keep)
        return logits[-keep:, : self._vocabulary].to(self._device, torch.float32)

    def rewind(self, count: int) -> None:
        """Forget the last ``count`` tokens; sliding-window layers drop what left the window."""
        self._cache.crop(-count)

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
            raise BrokenModel(f"{self.name} does not keep its cache: it cannot be decoded here")
        logits: Tensor = output.logits[0]
        return logits


def why_not_rewindable(
    config: PreTrainedConfig, kind_of_model: type[PreTrainedModel] | None = None
) -> str | None:
    """Why the state of such a model cannot be cut back, or None if it can.

    Recurrent layers (Mamba, linear attention) fold each token into one state, from which it cannot
    be taken out again; encoder-decoders have no single sequence.
    """
    from transformers import DynamicCache

    kind = config.model_type
    if config.is_encoder_decoder:
        return f"{kind} is an encoder-decoder; SafeDraft decodes decoder-only models"
    if getattr(config, "is_decoder", True) is False and kind not in _ALWAYS_CAUSAL:
        return f"{kind} reads in both directions; SafeDraft decodes from left to right"
    if kind_of_model is not None:
        if getattr(kind_of_model, "_is_stateful", False):
            return f"{kind} has recurrent state, which cannot be rewound after a rejected draft"
        if "past_key_values" not in inspect.signature(kind_of_model.forward).parameters:
            return f"{kind} keeps no cache that could be rewound"
    layers = DynamicCache(config=config).layers
    stuck = {type(layer).__name__ for layer in layers if not layer.is_croppable}
    if stuck:
        return (
            f"{kind} has layers whose state cannot be rewound after a rejected draft "
            f"({', '.join(sorted(stuck))})"
        )
    return None


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class that Transformers loads for a causal language model of such a configuration."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    kind: type[PreTrainedModel] | None = found[0] if isinstance(found, tuple) else found
    return kind


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the progress bars and notices that are not for our users."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
