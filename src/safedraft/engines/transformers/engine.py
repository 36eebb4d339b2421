"""Two models that Transformers loaded, as an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor

from safedraft.core.decode import Batch
from safedraft.core.session import Pass, Which
from safedraft.engines.base import Capabilities
from safedraft.engines.transformers.session import TransformersSession

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformersEngine:
    """Runs the passes of several requests in turn: each has caches of its own.

    Args:
        target: the target, on its own device, in its own dtype.
        draft: the draft, likewise. Its logits are handed over on the target's device.
        vocabulary: V, the ids that both share; rows past it are padding and are dropped.
        names: what errors call target and draft.
    """

    name = "transformers"
    capabilities = Capabilities()

    def __init__(
        self,
        target: PreTrainedModel,
        draft: PreTrainedModel,
        vocabulary: int,
        names: tuple[str, str] = ("target", "draft"),
    ) -> None:
        self._models = {"target": target, "draft": draft}
        self._names = dict(zip(self._models, names, strict=True))
        self._vocabulary = vocabulary

    def session(self, which: Which) -> TransformersSession:
        """A new, empty session in one of the two models."""
        device = self._models["target"].device
        return TransformersSession(
            self._models[which], self._names[which], self._vocabulary, device
        )

    def forward(self, passes: Sequence[Pass]) -> list[Tensor]:
        """Run the passes one by one; float32 logits ``[keep, V]`` of each."""
        return [
            cast("TransformersSession", one.session).forward(one.tokens, one.keep) for one in passes
        ]

    def batch(self) -> Batch:
        """A new batch of requests."""
        return Batch(self)

    def close(self) -> None:
        """Nothing is held outside of the models."""
