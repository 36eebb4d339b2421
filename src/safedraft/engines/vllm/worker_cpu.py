"""The worker on processors, with SafeDraft's model runner; ``checks.WORKERS`` names it."""

from __future__ import annotations

from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from safedraft.engines.vllm.runner import SSDRunner
from safedraft.engines.vllm.worker import SSDWorker


class SSDCPURunner(SSDRunner, CPUModelRunner):  # type: ignore[misc]
    """The runner on processors."""


class SSDCPUWorker(SSDWorker, CPUWorker):  # type: ignore[misc]
    """One rank on processors."""

    def init_device(self) -> None:
        """Run vLLM's method, and replace the runner that it makes before weights are loaded."""
        super().init_device()
        self.model_runner = SSDCPURunner(self.vllm_config, self.device)
