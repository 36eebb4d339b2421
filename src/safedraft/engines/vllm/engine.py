"""vLLM as an engine: many requests at once, in this process or in vLLM's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from itertools import count
from typing import Any

from safedraft.core.config import OF_SPEED, RiskConfig, Scheme
from safedraft.core.errors import BrokenModelError, SafeDraftError, first_line
from safedraft.core.generation import Generation, Step
from safedraft.core.request import Request
from safedraft.core.rule import Rule
from safedraft.core.sampling import LogProbabilities
from safedraft.engines.base import Capabilities, Capability
from safedraft.engines.vllm.options import PREFIX, RULE, TOP_LOGPROBS, TRACE, TURN_BEGUN
from safedraft.rules import find_rule


class VllmGeneration(Generation):
    """A request in vLLM's engine."""

    def __init__(self, request: Request, name: str) -> None:
        super().__init__(request)
        self.name = name
        """Id of the request in vLLM."""


class VllmEngine:
    """vLLM's engine; the thread that waits for a request steps it.

    Args:
        llm: vLLM's ``LLM``, started with SafeDraft's worker and scheduler.
        config: the constants of requests that set none.
    """

    name = "vllm"
    capabilities = Capabilities(
        {
            Capability.SESSIONS: "vLLM has no sessions of its models: use --engine transformers",
            Capability.MODELS: "vLLM keeps its models to itself: use --engine transformers",
            Capability.TWO_PROMPTS: "vLLM gives target and draft one prompt: use --engine "
            "transformers",
            Capability.DRAFTING_PER_REQUEST: "vLLM drafts for all requests together: give it to "
            "load_pair, or with --set",
            Capability.GRAMMARS: "vLLM takes it in its own server (safedraft serve --engine vllm); "
            "here, use --engine transformers",
            Capability.TREES: "vLLM drafts chains only",
            Capability.TOGETHER: "vLLM's engine is stepped by one thread: use generate_many",
        }
    )

    def __init__(self, llm: Any, config: RiskConfig) -> None:
        self._llm = llm
        self._engine = llm.llm_engine
        self._config = config
        self._names = count()
        self._running: dict[str, VllmGeneration] = {}

    @property
    def context_length(self) -> int:
        """vLLM's ``max_model_len``, which vLLM may have chosen itself."""
        return int(self._engine.model_config.max_model_len)

    def batch(self) -> VllmEngine:
        """The one batch of vLLM's own, which all requests share."""
        return self

    def add(self, request: Request) -> VllmGeneration:
        """Add a request, which ``step`` decodes from now on.

        Raises:
            SafeDraftError: vLLM or its plug-in refuses it.
        """
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import RequestOutputKind

        generation = VllmGeneration(request, f"safedraft-{next(self._names)}")
        sampling = request.sampling
        try:
            params = SamplingParams(
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                min_p=sampling.min_p,
                logit_bias=dict(sampling.logit_bias),
                presence_penalty=sampling.presence_penalty,
                frequency_penalty=sampling.frequency_penalty,
                repetition_penalty=sampling.repetition_penalty,
                seed=None if sampling.greedy else sampling.seed,
                stop_token_ids=sorted(request.end_tokens),
                ignore_eos=True,  # all end tokens are in stop_token_ids
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
                extra_args={TRACE: generation.name, **self._extra_args(request)},
            )
            prompt = {"prompt_token_ids": list(request.target_prompt)}
            self._engine.add_request(generation.name, prompt, params)
        except VLLMValidationError as error:
            raise SafeDraftError(first_line(error)) from error
        self._running[generation.name] = generation
        return generation

    def step(self) -> None:
        """One pass over the batch; every request receives the steps that were decided."""
        finished = {output.request_id: output for output in self._engine.step() if output.finished}
        self._take_steps(list(self._running.values()))
        for name in finished.keys() & self._running.keys():
            generation = self._running.pop(name)
            generation.ended = True
            if finished[name].outputs[0].finish_reason == "error" and not generation.error:
                generation.error = BrokenModelError("vLLM ended the request with an error")

    def remove(self, generation: Generation) -> None:
        """Stop decoding a request, if it has not ended, and take what is left of its trace."""
        assert isinstance(generation, VllmGeneration)
        if self._running.pop(generation.name, None) is not None:
            self._engine.abort_request([generation.name])
            self._take_steps([generation])
        generation.ended = True

    def close(self) -> None:
        """End vLLM's processes."""
        self._engine.engine_core.shutdown()

    def _extra_args(self, request: Request) -> dict[str, Any]:
        """The parameters of a request that the plug-in needs besides vLLM's own.

        Raises:
            SafeDraftError: the request wants another number of drafts than the engine has, or its
                rule is not registered.
        """
        _require_registered(request.rule)
        own = self._config.convert_to(request.rule.config).model_dump(mode="json")
        constants = request.config.model_dump(mode="json")
        changes = {name: value for name, value in constants.items() if value != own[name]}
        if speed := changes.keys() & OF_SPEED:
            self.capabilities.require(Capability.DRAFTING_PER_REQUEST, min(speed))
        extra = {PREFIX + name: value for name, value in changes.items()}
        extra[RULE] = request.rule.name
        if request.context.turn_begun is not None:
            extra[TURN_BEGUN] = request.context.turn_begun
        if request.top_logprobs is not None:
            extra[TOP_LOGPROBS] = request.top_logprobs
        return extra

    def _take_steps(self, generations: Sequence[VllmGeneration]) -> None:
        """Move the steps that the first rank has kept into the requests they belong to."""
        names = [generation.name for generation in generations]
        traces = self._llm.collective_rpc("take_traces", args=(names,))[0] if names else []
        for generation, trace in zip(generations, traces, strict=True):
            if trace is None:  # taken to its end
                continue
            steps, passes, rows, drafted, target_seconds, draft_seconds, error = trace
            target, draft = generation.target_passes, generation.draft_passes
            target.passes, target.rows, target.seconds = passes, rows, target_seconds
            draft.passes, draft.seconds = drafted, draft_seconds
            generation.steps.extend(_step(fields) for fields in steps)
            generation.error = BrokenModelError(error) if error else None


def _require_registered(rule: Rule) -> None:
    """Refuse a rule that the workers, which build it from its name, would replace by another."""
    registered = find_rule(rule.name)
    same = registered == rule if is_dataclass(rule) else type(registered) is type(rule)
    if not same:
        raise SafeDraftError(
            f"rule: vLLM's workers build {rule.name!r} from its name, and this is another rule of "
            "that name: register it under a name of its own (entry points safedraft.rules)"
        )


def _step(fields: Sequence[Any]) -> Step:
    """A step from its fields in order, which came from another process."""
    step = Step(*fields)
    logprobs = step.logprobs and LogProbabilities(*step.logprobs)
    return replace(step, scheme=Scheme(step.scheme) if step.scheme else None, logprobs=logprobs)
