"""The engine of two models loaded with Transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor

from safedraft.core.decode import Batch
from safedraft.core.session import Pass, Which
from safedraft.engines.base import Capabilities, Capability
from safedraft.engines.transformers.session import TransformersSession
from safedraft.models.rewindable import why_no_trees

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformersEngine:
    """Runs the passes of several requests one after the other; each request has its own caches.

    Args:
        target: the target, on its own device, in its own dtype.
        draft: the draft, on its own device, in its own dtype; its logits are moved to the target's
            device.
        vocabulary: V, the size of the shared vocabulary; logits of further ids are dropped.
        names: the names of target and draft in error messages.
    """

    name = "transformers"

    def __init__(
        self,
        target: PreTrainedModel,
        draft: PreTrainedModel,
        vocabulary: int,
        names: tuple[str, str] = ("target", "draft"),
    ) -> None:
        missing = {
            Capability.TOGETHER: "Transformers runs the passes of requests one after the other"
        }
        self._models = {"target": target, "draft": draft}
        self._why_no_trees = {which: why_no_trees(one) for which, one in self._models.items()}
        for reason in filter(None, self._why_no_trees.values()):
            missing[Capability.TREES] = reason
        self.capabilities = Capabilities(missing)
        self._names = dict(zip(self._models, names, strict=True))
        self._vocabulary = vocabulary

    def session(self, which: Which) -> TransformersSession:
        """Create an empty session in one of the two models."""
        return TransformersSession(
            self._models[which],
            self._names[which],
            self._vocabulary,
            self._models["target"].device,
            self._why_no_trees[which],
        )

    def forward(self, passes: Sequence[Pass]) -> list[Tensor]:
        """Run the passes one by one; return float32 logits ``[keep, V]`` of each."""
        return [
            cast("TransformersSession", item.session).forward(item.tokens, item.keep, item.parents)
            for item in passes
        ]

    def batch(self) -> Batch:
        """Create an empty batch of requests."""
        return Batch(self)

    def close(self) -> None:
        """Do nothing: all memory belongs to the models."""
