"""The worker on CUDA, with SafeDraft's model runner; ``checks.WORKERS`` names it."""

from __future__ import annotations

from vllm.v1.worker.gpu_worker import Worker

from safedraft.engines.vllm.runner import SSDRunner
from safedraft.engines.vllm.worker import SSDWorker


class SSDCUDAWorker(SSDWorker, Worker):  # type: ignore[misc]
    """One rank on CUDA."""

    def _make_model_runner(self) -> SSDRunner:
        return SSDRunner(self.vllm_config, self.device)
