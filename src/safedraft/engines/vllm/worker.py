"""The common part of SafeDraft's workers; each platform's worker is in a module of its own.

vLLM's worker for processors replaces parts of ``torch.cuda`` when it is imported, which must not
happen in a process that decodes on CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from safedraft.engines.vllm.checks import require_engine


class SSDWorker:
    """One rank; stands before vLLM's own worker among the base classes."""

    vllm_config: Any
    model_runner: Any

    def init_device(self) -> None:
        """Check the options, then run vLLM's method."""
        require_engine(self.vllm_config)
        super().init_device()  # type: ignore[misc]

    def take_traces(self, names: Sequence[str]) -> Any:
        """Called by ``collective_rpc``."""
        return self.model_runner.take_traces(names)
