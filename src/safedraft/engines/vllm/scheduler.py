"""vLLM's scheduler, changed for rows that decide nothing, requests that fail, and T by load.

It also passes on the statistics of replies, in the one field of an output that vLLM's server
returns and that is otherwise unused: SSD does not run with transferred caches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from safedraft.engines.vllm.options import KEY, Settings


class SSDScheduler(Scheduler):  # type: ignore[misc]
    """Schedules the last token of a row that decided nothing again, with drafts after it.

    Such a row is the end of a prefill. Its tokens are in both caches, and the draft has proposed
    what follows. With one computed token less the next step is an ordinary block.
    """

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, *args, **kwargs)
        if settings := Settings.of(vllm_config):
            most = vllm_config.scheduler_config.max_num_seqs
            self.dynamic_sd_lookup = settings.passes_by_load(most)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Run vLLM's method with the changes of this class."""
        sampled = model_runner_output.sampled_token_ids
        for request_id in scheduler_output.num_scheduled_tokens:
            request = self.requests.get(request_id)
            if request is None or request.is_finished():
                continue
            decided = sampled and sampled[model_runner_output.req_id_to_index[request_id]]
            # An unfinished prefill continues as it is.
            if not decided and request.num_computed_tokens >= request.num_tokens:
                request.num_computed_tokens = request.num_tokens - 1
        # vLLM ends whatever is in this set with an error, and its neighbors continue.
        self.grammar_compile_error_reqs.update(getattr(model_runner_output, "ssd_broken", ()))
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if statistics := getattr(model_runner_output, "ssd_statistics", None):
            _add_statistics(statistics, outputs)
        return outputs


def _add_statistics(
    statistics: Mapping[str, Mapping[str, float]], outputs: Mapping[int, Any]
) -> None:
    """Add the statistics so far to every output: stop strings decide later which is the last."""
    for output in (one for client in outputs.values() for one in client.outputs):
        if output.request_id in statistics:
            output.kv_transfer_params = {KEY: statistics[output.request_id]}
