"""vLLM's workers with SafeDraft's model runner; vLLM's option ``worker_cls`` names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker

from safedraft.engines.vllm.checks import require_engine
from safedraft.engines.vllm.runner import SSDCPURunner, SSDRunner


class SSDCPUWorker(CPUWorker):  # type: ignore[misc]
    """One rank on processors."""

    def init_device(self) -> None:
        """As vLLM's own, with the runner replaced before it loads anything."""
        require_engine(self.vllm_config)
        super().init_device()
        self.model_runner = SSDCPURunner(self.vllm_config, self.device)

    def take_traces(self, names: Sequence[str]) -> Any:
        """Called by ``collective_rpc``."""
        return self.model_runner.take_traces(names)


class SSDGPUWorker(Worker):  # type: ignore[misc]
    """One rank on CUDA."""

    def init_device(self) -> None:
        """As vLLM's own, with the runner replaced before it loads anything."""
        require_engine(self.vllm_config)
        super().init_device()
        self.model_runner = SSDRunner(self.vllm_config, self.device)

    def take_traces(self, names: Sequence[str]) -> Any:
        """Called by ``collective_rpc``."""
        return self.model_runner.take_traces(names)
