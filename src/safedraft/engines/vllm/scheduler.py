"""vLLM's scheduler, told that a row without drafts has decided nothing.

It hands the statistics of replies on as well, in the one field of an output that vLLM's server
shows and that nobody else uses: SSD does not run with transferred caches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from safedraft.engines.vllm.options import KEY


class SSDScheduler(Scheduler):  # type: ignore[misc]
    """Schedules the last token of a row that decided nothing once more, with drafts behind it.

    Such a row is the end of a prefill. Its tokens are in both caches, and the draft has proposed
    what follows: taking its last token back by one makes the next step an ordinary block.
    """

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """As vLLM's own, after the rows that decided nothing were taken back."""
        sampled = model_runner_output.sampled_token_ids
        for request_id in scheduler_output.num_scheduled_tokens:
            request = self.requests.get(request_id)
            if request is None or request.is_finished():
                continue
            said = sampled and sampled[model_runner_output.req_id_to_index[request_id]]
            # A prefill that is not at its end goes on as it is.
            if not said and request.num_computed_tokens >= request.num_tokens:
                request.num_computed_tokens = request.num_tokens - 1
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if told := getattr(model_runner_output, "ssd_statistics", None):
            _tell(told, outputs)
        return outputs


def _tell(told: Mapping[str, Mapping[str, float]], outputs: Mapping[int, Any]) -> None:
    """Put the statistics so far into every output: which is the last, stop strings decide later."""
    for output in (one for client in outputs.values() for one in client.outputs):
        if output.request_id in told:
            output.kv_transfer_params = {KEY: told[output.request_id]}
