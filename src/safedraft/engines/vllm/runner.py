"""vLLM's model runner and drafter, with the decisions of ``batch``."""
# Long because: drafter and runner share the rows of one step, which vLLM hands to both.

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm.v1.outputs import SamplerOutput
from vllm.v1.spec_decode.draft_model import DraftModelProposer
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from safedraft.core.decide import Draft
from safedraft.core.errors import BrokenModelError, SafeDraftError
from safedraft.core.generation import Step
from safedraft.core.rows import move, wait_for
from safedraft.engines.vllm.batch import DraftedBlocks, ServedRequest, rehearse, verify
from safedraft.engines.vllm.checks import require_engine
from safedraft.engines.vllm.grammar import GrammarCompiler
from safedraft.engines.vllm.logprobs import tabulate
from safedraft.engines.vllm.metrics import count
from safedraft.engines.vllm.options import Settings, wants_statistics

_NONE = -1  # marks a place without a token in vLLM's blocks


Taken = tuple[list[tuple[Any, ...]], int, int, int, float, float, str | None]
"""The fields of the steps since the last time, passes and rows of the target, passes of the draft,
seconds of both, and why the request ended early."""


class Trace:
    """Steps and costs of one request, kept until they are taken."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps: list[Step] = []
        self.target_passes = self.target_rows = self.draft_passes = 0
        self.target_seconds = self.draft_seconds = 0.0
        self.error: str | None = None
        self.finished = False

    def take(self) -> Taken:
        """Return everything in plain types, for another process, and forget the steps."""
        steps = [astuple(step) for step in self.steps]
        self.steps = []
        passes = self.target_passes, self.target_rows, self.draft_passes
        return steps, *passes, self.target_seconds, self.draft_seconds, self.error


class _Served(NamedTuple):
    """A request from its first step to its last, and what is reported of it."""

    request: ServedRequest
    trace: Trace | None
    wants_statistics: bool
    """Whether its statistics are sent with its tokens."""


class _Row(NamedTuple):
    """A row of the batch after the target's pass."""

    served: _Served
    prefilled: bool
    """False until its prefill is complete: nothing is drafted before."""
    resumed: bool
    """Whether its caches are computed again, after a preemption."""
    scheduled: int
    """Number of places for drafts that vLLM ran, filled or not."""
    steps: list[Step]
    """The decided positions; empty for a row without drafts."""

    @property
    def request(self) -> ServedRequest | None:
        """The request that is drafted for; None during its prefill."""
        return self.served.request if self.prefilled else None

    @property
    def rejected(self) -> int:
        """Number of tokens that vLLM ran and whose place is not decided."""
        return self.scheduled + 1 - len(self.steps) if self.prefilled else 0

    def was_read(self, length: int) -> bool:
        """Whether the draft has read all but the last decided token, of ``length`` that vLLM ran.

        It has not read those of a preempted row, which is decided with its earlier drafts: not even
        where all tokens but the last are still cached, and not in the last of several steps.
        """
        return bool(self.steps) and not self.resumed and length == 1 + self.scheduled


class _Place(NamedTuple):
    """A place in a prompt whose states are read in the draft's first pass of this step."""

    request: ServedRequest
    place: int
    at: int
    """Its index in that pass."""
    target: Tensor
    """The target's last hidden state there, ``[H]`` in float32."""


class _Enough(Exception):
    """More than half of the rows have ended their drafts: another pass is not worth it."""


class Drafter(DraftModelProposer):  # type: ignore[misc]
    """vLLM's draft model; it keeps q of every row and draws with the seed of each request."""

    def __init__(self, *args: Any, vocabulary: int, confidence: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._vocabulary, self._confidence = vocabulary, confidence
        self.rows: Sequence[_Row] = ()
        """Rows of the batch; set before ``propose``."""
        self.passes = 0
        """Number of passes of the draft in the last ``propose``."""
        self._block = DraftedBlocks(())
        self._places: list[_Place] = []

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load as vLLM does, and read states for the risk after each pass of the draft."""
        super().load_model(*args, **kwargs)
        self.model.register_forward_hook(self._read_states)

    def _read_states(self, _module: Any, _inputs: Any, hidden: Tensor) -> None:
        """Read the states at the places that are in this pass."""
        for request, place, at, target in self._places:
            request.note_states(place, {"draft": hidden[at].float().cpu(), "target": target})
        self._places = []

    def propose(self, *args: Any, **kwargs: Any) -> list[list[Draft]]:
        """The drafts of each row: at most T + 1, none for a row that is not drafted for.

        A row's drafts end with the first one that is less likely than ``draft_confidence``, and
        those of all rows with the pass in which more than half of them have ended: drafts after an
        unlikely draft are likely to be rejected.
        """
        self.passes, self._block = 0, DraftedBlocks([row.request for row in self.rows])
        with suppress(_Enough):
            super().propose(*args, **kwargs)
        return [self._cut(drafts) for drafts in self._block.read()]

    def _cut(self, drafts: list[Draft]) -> list[Draft]:
        """Drop the drafts after the first draft that is less likely than ``draft_confidence``."""
        unsure = (at for at, one in enumerate(drafts) if one.probability < self._confidence)
        return drafts[: next(unsure, len(drafts)) + 1]

    def set_inputs_first_pass(
        self,
        *,
        target_hidden_states: Tensor,
        cad: Any,
        num_rejected_tokens_gpu: Tensor,
        **kwargs: Any,
    ) -> tuple[int, Tensor, Any]:
        """Set inputs as vLLM does, but a row that decided its drafts reads only its last token.

        The draft read the tokens before it when it proposed them. vLLM subtracts the rejected ones
        from the rows' lengths after this pass; here that is done before it.
        """
        *_, metadata = super().set_inputs_first_pass(
            target_hidden_states=target_hidden_states,
            cad=cad,
            num_rejected_tokens_gpu=num_rejected_tokens_gpu,
            **kwargs,
        )
        starts = metadata.query_start_loc_cpu[:-1].tolist()
        lengths = cad.query_start_loc_cpu.diff().tolist()
        ranges = [
            start + torch.arange(last if row.was_read(length) else 0, last + 1)
            for row, length, start in zip(self.rows, lengths, starts, strict=True)
            for last in [length - row.rejected]
        ]
        read = move(torch.cat(ranges), self.device)
        for buffer in (self.input_ids, self.positions):
            buffer[: len(read)] = buffer[read]
        ends = torch.tensor([len(one) for one in ranges]).cumsum(0, dtype=torch.int32)
        bounds = torch.cat([torch.zeros(1, dtype=torch.int32), ends])
        on_device = move(bounds, self.device)
        metadata = metadata.replace(
            query_start_loc=on_device,
            query_start_loc_cpu=bounds,
            num_actual_tokens=len(read),
            max_query_len=max(map(len, ranges)),
            seq_lens=metadata.seq_lens - num_rejected_tokens_gpu,
            slot_mapping=metadata.slot_mapping[read],
        )
        num_rejected_tokens_gpu.zero_()
        self._places = self._find_places(
            bounds.tolist(), cad.query_start_loc_cpu.tolist(), target_hidden_states
        )
        return len(read), on_device[1:] - 1, metadata

    def _find_places(
        self, bounds: Sequence[int], target_bounds: Sequence[int], target_hidden_states: Tensor
    ) -> list[_Place]:
        """The places that both models read in this step, of those not read yet for the risk.

        Both models' rows of such a request begin with the same token. The draft may read a token
        more than the target, which it reads again in the next step. The target's states are copied,
        since the draft's pass may run in the same memory.

        Args:
            bounds: where the rows of the draft's pass begin, and where the last one ends.
            target_bounds: the same of the target's pass.
            target_hidden_states: the target's last ones, ``[tokens, H]``.
        """
        found = []
        both = zip(self.rows, pairwise(bounds), pairwise(target_bounds), strict=True)
        for row, (start, end), (target_start, target_end) in both:
            request = row.served.request
            for place in request.unread:
                ahead = place - int(self.positions[start])
                if 0 <= ahead < min(end - start, target_end - target_start):
                    state = target_hidden_states[target_start + ahead]
                    target = state.to("cpu", torch.float32, copy=True)
                    found.append(_Place(request, place, start + ahead, target))
        return found

    def _sample_draft_tokens(self, hidden_states: Tensor, _: Any) -> tuple[Tensor, None]:
        tokens = self._block.propose(self.compute_logits(hidden_states))
        self.passes += 1
        if self._confidence:
            drafted = self._block.read()
            ended = [any(one.probability < self._confidence for one in row) for row in drafted]
            if 2 * sum(ended) > len(self.rows):
                raise _Enough
        return tokens, None

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """The draft's logits, ``[rows, V]``."""
        logits: Tensor = self.model.compute_logits(hidden_states)[:, : self._vocabulary]
        return logits


class _NoSampler:
    """Replaces the samplers with which vLLM samples from the target alone."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise BrokenModelError(
            "vLLM was about to choose a token without the draft; decoding stopped"
        )


class SSDRunner(GPUModelRunner):  # type: ignore[misc]
    """A model runner in which every token is decided by a rule, from both models."""

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        self._settings: Settings = require_engine(vllm_config)
        super().__init__(vllm_config, device)
        # The last of vLLM's T + 1 drafts is decided without the target reading it, so a row has
        # T + 1 tokens, and full CUDA graphs are captured and found for that many.
        self.uniform_decode_query_len = self.num_spec_tokens
        self.cudagraph_dispatcher.uniform_decode_query_len = self.num_spec_tokens
        self.drafter = Drafter(
            vllm_config=vllm_config,
            device=device,
            runner=self,
            vocabulary=self._settings.vocabulary,
            # Data-parallel ranks that share a model's experts run every pass together.
            confidence=0.0
            if self.parallel_config.data_parallel_size > 1
            else self._settings.config.draft_confidence,
        )
        self.sampler = self.rejection_sampler = _NoSampler()
        self._served: dict[str, _Served] = {}
        self._resumed: frozenset[str] = frozenset()
        self._ran: dict[str, list[int]] = {}  # drafts that the target runs in this step
        self._traces: dict[str, Trace] = {}  # by name: one outlives its request until it is taken
        self._statistics: dict[str, dict[str, float]] = {}
        self._rows: list[_Row] = []
        self._started = 0.0

    def take_traces(self, names: Sequence[str]) -> list[Taken | None]:
        """The traces of some requests, as ``take_trace``."""
        return [self.take_trace(name) for name in names]

    def take_trace(self, name: str) -> Taken | None:
        """Take the new steps of the trace of that name; None if there is no such trace."""
        trace = self._traces.get(name)
        if trace is None:
            return None
        if trace.finished:
            del self._traces[name]
        return trace.take()

    def _update_states(self, scheduler_output: Any) -> Any:
        for request_id in scheduler_output.finished_req_ids:
            served = self._served.pop(request_id, None)
            if served and served.trace:
                self._finish(served.trace)
        self._resumed = frozenset(scheduler_output.scheduled_cached_reqs.resumed_req_ids)
        for request_id in self._served.keys() - scheduler_output.num_scheduled_tokens.keys():
            self._served[request_id].request.keep_drafts()
        self._ran = scheduler_output.scheduled_spec_decode_tokens
        corrections = super()._update_states(scheduler_output)
        self.input_batch.generators.clear()  # draws do not depend on vLLM's generators
        for new in scheduler_output.scheduled_new_reqs:
            if new.sampling_params is None or new.req_id in self._served:
                raise SafeDraftError("only requests that generate one reply are decoded with SSD")
            prompt = new.prompt_token_ids or ()
            self._served[new.req_id] = self._serve(new.sampling_params, new.req_id, prompt)
        return corrections

    def _serve(self, params: Any, request_id: str, prompt: Sequence[int]) -> _Served:
        name = self._settings.trace_of(params)
        trace = Trace(name) if name else None
        if trace:
            self._traces[trace.name] = trace
        request = ServedRequest(self._settings.request(params, request_id, prompt))
        if params.structured_outputs:
            try:
                request.constraints.append(self._compiler.compile(params))
            except BrokenModelError as error:
                request.fail(error)
        return _Served(request, trace, wants_statistics(params))

    @cached_property
    def _compiler(self) -> GrammarCompiler:
        return GrammarCompiler(self.vllm_config, self._settings.vocabulary)

    def _finish(self, trace: Trace) -> None:
        """Forget a trace that was taken completely; keep one with steps left."""
        trace.finished = True
        if not trace.steps:
            del self._traces[trace.name]

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """Run the target's pass over the batch, as vLLM does."""
        self._started = self._now()
        return super().execute_model(*args, **kwargs)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Sample as vLLM does, and report log probabilities, statistics and failed requests.

        The scheduler hands the log probabilities to the requests with ``logprobs``. The masks in
        ``grammar_output`` are for the target alone; ``verify`` has its own.
        """
        output = super().sample_tokens(None)
        if self._statistics:
            output.ssd_statistics, self._statistics = self._statistics, {}
        if logprobs := tabulate([row.steps for row in self._rows]):
            output.logprobs = logprobs
        if broken := self._broken():
            output.ssd_broken = broken
        return output

    def _broken(self) -> list[str]:
        """Ids of the requests that ended with an error in this step; their traces get the error."""
        broken: list[str] = []
        if not self._rows:  # a step without a pass
            return broken
        for request_id, row in zip(self.input_batch.req_ids, self._rows, strict=True):
            if error := row.served.request.error:
                broken.append(request_id)
                if row.served.trace:
                    row.served.trace.error = str(error)
        self._rows = []
        return broken

    def _sample(self, logits: Tensor, spec_decode_metadata: Any) -> SamplerOutput:
        """Decide every row that has drafts; any other row decides nothing.

        vLLM ran a row's last token and all of its drafts but the last, so that there are as many
        rows of logits as drafts: vLLM's bonus token is the position of the last draft.
        """
        seconds = self._now() - self._started
        ids = self.input_batch.req_ids
        scheduled = (
            spec_decode_metadata.num_draft_tokens if spec_decode_metadata else [0] * len(ids)
        )
        self._rows = []
        waiting: list[tuple[_Row, ServedRequest, int]] = []
        at = 0
        for number, (request_id, places) in enumerate(zip(ids, scheduled, strict=True)):
            prefilled = not self.discard_request_mask.np[number]
            resumed = request_id in self._resumed
            row = _Row(self._served[request_id], prefilled, resumed, places, [])
            self._rows.append(row)
            if request := row.request:
                self._keep_verified(request, self._ran.get(request_id, ()), request_id)
                if request.drafts and not request.ended:
                    waiting.append((row, request, at + number))
            at += places
        decided = verify(
            [request for _, request, _ in waiting],
            logits[:, : self._settings.vocabulary],
            [first for *_, first in waiting],
        )
        for (row, *_), steps in zip(waiting, decided, strict=True):
            row.steps.extend(steps)
        self._log(seconds)
        self._statistics = {
            request_id: row.served.request.statistics()
            for request_id, row in zip(ids, self._rows, strict=True)
            if row.steps and row.served.wants_statistics
        }
        return SamplerOutput(sampled_token_ids=self._block(), logprobs_tensors=None)

    def _keep_verified(
        self, request: ServedRequest, tokens: Sequence[int], request_id: str
    ) -> None:
        """Keep the drafts that have logits: one more than the ``tokens`` that vLLM ran.

        The request ends with an error if vLLM ran other tokens than the draft proposed, or a reply
        that has ended.
        """
        if request.error:
            return  # the scheduler ends it with this step
        ran = [] if set(tokens) <= {_NONE} else list(tokens)
        known = len(self.requests[request_id].output_token_ids)
        proposed = [draft.token for draft in request.drafts]
        if request.ended:
            fault = "continued a reply that has ended"
        elif ran != proposed[: len(ran)] or known != request.position:
            fault = "verified tokens that the draft did not propose"
        else:
            request.drafts = request.drafts[: len(ran) + 1]
            return
        request.fail(BrokenModelError(f"vLLM {fault}; decoding stopped"))

    def _block(self) -> Tensor:
        """The decided tokens in vLLM's form, ``[rows, T + 2]``, filled up with -1."""
        block = torch.full((len(self._rows), self.num_spec_tokens + 1), _NONE, dtype=torch.int32)
        for at, row in enumerate(self._rows):
            block[at, : len(row.steps)] = torch.tensor([step.token for step in row.steps])
        return move(block, self.device)

    def propose_draft_token_ids(
        self,
        scheduler_output: Any,
        sampled_token_ids: Tensor,
        sampling_metadata: Any,
        hidden_states: Tensor,
        sample_hidden_states: Tensor,
        aux_hidden_states: Any,
        spec_decode_metadata: Any,
        common_attn_metadata: Any,
        slot_mappings: Any,
    ) -> list[list[int]]:
        """Draft after the last token of every row, also after the last token of a prefill.

        A row that decided nothing passes its last token as if it had just been decided, and counts
        it among the rejected places. The last draft is not given to vLLM: it is decided without the
        target reading it.
        """
        started = self._now()
        total = scheduler_output.total_num_scheduled_tokens
        following = [self._following(row, scheduler_output) for row in range(len(self._rows))]
        lengths = common_attn_metadata.query_start_loc_cpu.diff()
        self.drafter.rows = self._rows
        drafted = self.drafter.propose(
            num_speculative_tokens=scheduler_output.num_spec_tokens_to_schedule,
            target_token_ids=self.input_ids.gpu[:total],
            target_positions=self._get_positions(total),
            target_hidden_states=hidden_states[:total],
            next_token_ids=self._move(following),
            token_indices_to_sample=None,
            common_attn_metadata=common_attn_metadata.replace(
                num_actual_tokens=total,
                max_query_len=int(lengths.max()),
                slot_mapping=common_attn_metadata.slot_mapping[:total],
            ),
            sampling_metadata=sampling_metadata,
            num_rejected_tokens_gpu=self._move([row.rejected for row in self._rows]),
            slot_mappings=slot_mappings,
        )
        self._keep(drafted, self._now() - started)
        return [[draft.token for draft in drafts[:-1]] for drafts in drafted]

    def _move(self, numbers: Sequence[int]) -> Tensor:
        return move(torch.tensor(numbers, dtype=torch.int32), self.device)

    def _following(self, row: int, scheduler_output: Any) -> int:
        """The token that the draft reads last: the last decided one, or the row's own next one."""
        if steps := self._rows[row].steps:
            return steps[-1].token
        batch = self.input_batch
        if self._rows[row].prefilled:
            return int(batch.token_ids_cpu[row, batch.num_tokens_no_spec[row] - 1])
        scheduled = scheduler_output.num_scheduled_tokens[batch.req_ids[row]]
        return int(batch.token_ids_cpu[row, batch.num_computed_tokens_cpu[row] + scheduled])

    def _keep(self, drafted: Sequence[list[Draft]], seconds: float) -> None:
        """Keep every row's drafts, with their distributions, until they are verified."""
        for row, drafts in zip(self._rows, drafted, strict=True):
            if row.request:
                row.request.drafts = drafts
            if trace := row.served.trace:
                trace.draft_passes += self.drafter.passes
                trace.draft_seconds += seconds

    def _input_fits_in_drafter(self, common_attn_metadata: Any) -> bool:
        """Always true: where vLLM would leave all drafts out, the requests without room end.

        vLLM runs the draft past the end of a context without writing to the cache there.

        Raises:
            BrokenModelError: drafts do not fit, and not because of a request's length.
        """
        if super()._input_fits_in_drafter(common_attn_metadata):
            return True
        error = BrokenModelError("the draft has no room left after a request; decoding stopped")
        room = self.effective_drafter_max_model_len - self.num_spec_tokens
        lengths = self.optimistic_seq_lens_cpu[: len(self._rows)].tolist()
        full = [row for row, length in zip(self._rows, lengths, strict=True) if length > room]
        if not full:
            raise error
        for row in full:
            row.served.request.fail(error)
        return True

    def _log(self, seconds: float) -> None:
        if self.is_driver:
            count(row.steps for row in self._rows)
        for row in self._rows:
            if trace := row.served.trace:
                trace.steps += row.steps
                trace.target_passes += 1
                trace.target_rows += 1 + row.scheduled
                trace.target_seconds += seconds

    def _now(self) -> float:
        """Seconds, after all work on the device has ended if a request is traced."""
        if self._traces:
            wait_for(self.device)
        return time.perf_counter()

    @property
    def is_driver(self) -> bool:
        """Whether this rank counts metrics."""
        return bool(self.parallel_config.rank == 0)

    @torch.inference_mode()
    def _dummy_sampler_run(self, hidden_states: Tensor) -> Tensor:
        """Decide a block of as many requests as there may be, so that vLLM measures the memory.

        On processors vLLM measures none and only warms up, for which one request is enough.
        """
        if self.device.type == "cpu":
            hidden_states = hidden_states[:1]
        passes, width = self.num_spec_tokens, self.drafter.hidden_size
        of_draft = hidden_states.new_empty(len(hidden_states), width)
        logits = self.model.compute_logits(torch.rand_like(hidden_states.repeat(passes, 1)))
        rehearse(
            logits[:, : self._settings.vocabulary],
            lambda: self.drafter.compute_logits(torch.rand_like(of_draft)),
            passes,
        )
        return hidden_states
