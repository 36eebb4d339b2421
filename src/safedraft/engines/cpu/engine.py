"""The engine of two packed decoders."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from torch import Tensor

from safedraft.core.decode import Batch
from safedraft.core.session import Pass, Which
from safedraft.engines.base import Capabilities, Capability
from safedraft.engines.cpu.decoder import CPUSession, Decoder

ROWS_AT_ONCE = 16
"""Rows of a pass above which the time of a pass grows by more than a row of one request gains."""


class CPUEngine:
    """Runs the passes of several requests through the weights together.

    Args:
        target: the target.
        draft: the draft.
    """

    name = "cpu"
    capabilities = Capabilities(
        {
            Capability.MODELS: "the engine cpu has packed weights and no models of Transformers: "
            "use --engine transformers"
        }
    )

    def __init__(self, target: Decoder, draft: Decoder) -> None:
        self._decoders = {"target": target, "draft": draft}
        self._lock = threading.Lock()

    def session(self, which: Which) -> CPUSession:
        """Create an empty session in one of the two models."""
        return self._decoders[which].session()

    def forward(self, passes: Sequence[Pass]) -> list[Tensor]:
        """Run the passes of each model together; return float32 logits ``[keep, V]`` of each."""
        logits: dict[int, Tensor] = {}
        for decoder in self._decoders.values():
            own = [
                (index, item)
                for index, item in enumerate(passes)
                if isinstance(item.session, CPUSession) and item.session.decoder is decoder
            ]
            if own:
                with self._lock:  # the rows of a pass are computed in place
                    found = decoder.forward([item for _, item in own])
                logits |= {index: rows for (index, _), rows in zip(own, found, strict=True)}
        return [logits[index] for index in range(len(passes))]

    def batch(self) -> Batch:
        """Create an empty batch of requests."""
        return Batch(self, ROWS_AT_ONCE)

    def close(self) -> None:
        """Do nothing: all memory belongs to this process."""
