"""vLLM's scheduler, told that a row without drafts has decided nothing."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler


class SSDScheduler(Scheduler):  # type: ignore[misc]
    """Schedules the last token of a row that decided nothing once more, with drafts behind it.

    Such a row is the end of a prefill (the first, or the one after a preemption), or one whose
    drafts did not fit into the step's budget. Its tokens are in both caches now, and the draft has
    proposed what follows: taking its last token back by one makes the next step an ordinary block.
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
        return super().update_from_output(scheduler_output, model_runner_output)
