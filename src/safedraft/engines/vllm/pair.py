"""A pair that decodes in vLLM: many requests at once, in this process or in vLLM's own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from safedraft.core.config import OF_SPEED, SamplingParams, Scheme, SSDConfig
from safedraft.core.decode import Step
from safedraft.core.errors import SafeDraftError, first_line
from safedraft.engines.vllm.options import PREFIX, TRACE, room_for
from safedraft.engines.vllm.setup import plan, prepare_environment, require_vllm
from safedraft.models.progress import Report, silent
from safedraft.models.registry import PairSpec
from safedraft.text.chat import (
    Detokenizer,
    Message,
    Reply,
    Statistics,
    Stream,
    conversation,
    encode,
    turn_begun,
    with_system,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


T = TypeVar("T", SamplingParams, SSDConfig)


@dataclass(frozen=True)
class VllmPair:
    """A target and a draft in one vLLM engine; made by ``load_pair(engine="vllm")``.

    Both models see the same prompt. What it says is what ``Pair`` says in the same dtype, as far as
    the two engines compute the same logits.
    """

    target: str
    draft: str
    tokenizer: PreTrainedTokenizerBase | None
    """None for models that decode ids only."""
    system: str | None
    """A system prompt of both models."""
    vocabulary: int
    """V: ids below it are shared."""
    context_length: int
    """Tokens of a prompt and its reply; a little less than vLLM's ``max_model_len``."""
    end_tokens: frozenset[int]
    config: SSDConfig
    engine: Engine

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        prefill: str = "",
        sampling: SamplingParams | None = None,
        config: SSDConfig | None = None,
        top_logprobs: int | None = None,
    ) -> Reply:
        """As ``Pair.generate``; log probabilities are refused."""
        return self.stream(
            prompt, prefill=prefill, sampling=sampling, config=config, top_logprobs=top_logprobs
        ).drain()

    def generate_many(
        self,
        prompts: Sequence[str | Sequence[Message]],
        *,
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        config: SSDConfig | Sequence[SSDConfig] | None = None,
    ) -> list[Reply]:
        """Answer many prompts at once; ``sampling`` and ``config`` are of all or of each.

        A reply's seconds are the time from when all were handed in to its own last token; those of
        a model are the passes that the request took part in.
        """
        if isinstance(prompts, str):
            raise SafeDraftError("generate_many takes a list of prompts: one alone is generate's")
        asked = [conversation(prompt) for prompt in prompts]
        configs = [
            (own or self.config).for_turn(begun=turn_begun(messages))
            for messages, own in zip(asked, _each(config, prompts), strict=True)
        ]
        return self.generate_many_ids(
            [self.prompt(messages) for messages in asked], sampling=sampling, config=configs
        )

    def generate_many_ids(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        config: SSDConfig | Sequence[SSDConfig] | None = None,
    ) -> list[Reply]:
        """As ``generate_many``, from token ids."""
        each = zip(prompts, _each(sampling, prompts), _each(config, prompts), strict=True)
        decodings = [self._decoding(*one) for one in each]
        replies = []
        try:
            for decoding in decodings:
                decoding.start()
            for decoding, ids in zip(decodings, prompts, strict=True):
                reply = self._stream(decoding, ids).drain()
                reply.statistics.seconds = decoding.seconds
                reply.statistics.first_token_seconds = decoding.first_token_seconds
                replies.append(reply)
        finally:  # on Ctrl-C none of them goes on in the engine
            for decoding in decodings:
                decoding.leave()
        return replies

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        prefill: str = "",
        sampling: SamplingParams | None = None,
        config: SSDConfig | None = None,
        top_logprobs: int | None = None,
    ) -> Stream:
        """As ``Pair.stream``; log probabilities are refused."""
        messages = conversation(prompt, prefill)
        return self.stream_ids(
            self.prompt(messages),
            sampling=sampling,
            config=(config or self.config).for_turn(begun=turn_begun(messages)),
            top_logprobs=top_logprobs,
        )

    def stream_ids(
        self,
        prompt: Sequence[int],
        *,
        sampling: SamplingParams | None = None,
        config: SSDConfig | None = None,
        top_logprobs: int | None = None,
    ) -> Stream:
        """As ``stream``, from token ids; with no tokenizer, tokens have no text.

        Raises:
            PromptTooLong: no room left in the context.
            SafeDraftError: an empty prompt, an id that is not shared, stop strings without a
                tokenizer, a constant that vLLM has no use for, a ``prefill_scheme``, log
                probabilities.
        """
        if top_logprobs is not None:
            raise SafeDraftError(
                "top_logprobs: vLLM's workers hand out no distributions: leave it out, or load the "
                "pair without engine='vllm'"
            )
        return self._stream(self._decoding(prompt, sampling, config), prompt)

    def prompt(self, prompt: str | Sequence[Message]) -> list[int]:
        """The one prompt of both models.

        Raises:
            SafeDraftError: there is no tokenizer or no chat template, or the text is empty.
        """
        messages = conversation(prompt) if isinstance(prompt, str) else prompt
        if self.tokenizer is None:
            raise SafeDraftError(f"{self.target} has no tokenizer: it decodes token ids only")
        return encode(self.tokenizer, with_system(messages, self.system))

    def close(self) -> None:
        """End vLLM's processes and give its memory back."""
        self.engine.close()

    def _decoding(
        self, prompt: Sequence[int], sampling: SamplingParams | None, config: SSDConfig | None
    ) -> Decoding:
        sampling = sampling or SamplingParams()
        config = (config or self.config).for_turn(begun=None)
        if not prompt:
            raise SafeDraftError(f"{self.target}: the prompt is empty")
        if not all(0 <= token < self.vocabulary for token in prompt):
            raise SafeDraftError("the prompt has ids that target and draft do not share")
        if sampling.stop and self.tokenizer is None:
            raise SafeDraftError("stop strings need a tokenizer, and the target has none")
        fitted = sampling.fitted(len(prompt), self.context_length)
        return Decoding(self.engine, prompt, fitted, self._changes(config), self.end_tokens, config)

    def _changes(self, config: SSDConfig) -> dict[str, Any]:
        engines = self.config.for_turn(begun=False)
        own, asked = engines.model_dump(mode="json"), config.model_dump(mode="json")
        changes = {name: value for name, value in asked.items() if value != own[name]}
        if fixed := changes.keys() & OF_SPEED:
            raise SafeDraftError(f"{min(fixed)} is the whole engine's: give it to load_pair")
        return {PREFIX + name: value for name, value in changes.items()}

    def _stream(self, decoding: Decoding, prompt: Sequence[int]) -> Stream:
        sampling = decoding.sampling
        return Stream(
            iter(decoding),
            Detokenizer(self.tokenizer, prompt) if self.tokenizer else None,
            stop=sampling.stop,
            end_tokens=self.end_tokens,
            bin_size=decoding.config.bin_size,
            target=decoding.target,
            draft=decoding.draft,
            statistics=Statistics(
                prompt_tokens=len(prompt), seed=None if sampling.greedy else sampling.seed
            ),
        )


def _each(given: T | Sequence[T] | None, prompts: Sequence[Any]) -> Sequence[T | None]:
    if isinstance(given, Sequence):
        return given
    return [given] * len(prompts)


class Passes:
    """Passes of one model that a request took part in, and their seconds."""

    def __init__(self) -> None:
        self.passes = 0
        self.seconds = 0.0


@dataclass(slots=True)
class Arrivals:
    """When a request's first and last tokens came, by the clock; 0 before they do."""

    first: float = 0.0
    last: float = 0.0


class Decoding:
    """One request in the engine; iterates over its steps, and leaves when it is let go."""

    def __init__(
        self,
        engine: Engine,
        prompt: Sequence[int],
        sampling: SamplingParams,
        changes: dict[str, Any],
        end_tokens: frozenset[int],
        config: SSDConfig,
    ) -> None:
        self.sampling, self.config = sampling, config
        self.target, self.draft = Passes(), Passes()
        self._engine, self._prompt = engine, prompt
        self._changes, self._end_tokens = changes, end_tokens
        self._name: str | None = None
        self._started = 0.0
        self._arrivals = Arrivals()

    def start(self) -> None:
        """Hand the request in, unless that was done."""
        if self._name is None:
            self._started = time.perf_counter()
            self._name = self._engine.add(
                self._prompt, self.sampling, self._end_tokens, self._changes, self._arrivals
            )

    @property
    def seconds(self) -> float:
        """From when it was handed in to its end."""
        return self._arrivals.last - self._started

    @property
    def first_token_seconds(self) -> float:
        """From when it was handed in to its first tokens."""
        return self._arrivals.first - self._started

    def __iter__(self) -> Iterator[Step]:
        self.start()
        assert self._name is not None
        try:
            while not self._engine.finished(self._name):
                self._engine.step()
                yield from self._new_steps(self._name)
            yield from self._new_steps(self._name)
        finally:
            self.leave()

    def leave(self) -> None:
        """End it, if it was handed in and is not at its end."""
        if self._name is not None:
            self._engine.abort(self._name)

    def _new_steps(self, name: str) -> Iterator[Step]:
        found = self._engine.trace(name)
        if found is None:  # taken to its end
            return
        steps, passes, drafted, target_seconds, draft_seconds = found
        self.target.passes, self.target.seconds = passes, target_seconds
        self.draft.passes, self.draft.seconds = drafted, draft_seconds
        for token, matched, scheme, strength, q, p, block in steps:
            yield Step(token, matched, Scheme(scheme), strength, q, p, block)


class Engine:
    """vLLM's engine, stepped by whoever waits for a request."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._engine = llm.llm_engine
        self._numbers = count()
        self._running: dict[str, Arrivals] = {}

    @property
    def context_length(self) -> int:
        """vLLM's ``max_model_len``, which it may have found by itself."""
        return int(self._engine.model_config.max_model_len)

    def add(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams,
        end_tokens: frozenset[int],
        changes: dict[str, Any],
        arrivals: Arrivals,
    ) -> str:
        """Hand a request in; its name. When its tokens come is written into ``arrivals``."""
        from vllm import SamplingParams as VllmSamplingParams
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import RequestOutputKind

        name = f"safedraft-{next(self._numbers)}"
        try:
            params = VllmSamplingParams(
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                seed=None if sampling.greedy else sampling.seed,
                stop_token_ids=sorted(end_tokens),
                ignore_eos=True,  # what ends a reply is named above
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
                extra_args={TRACE: name, **changes},
            )
            self._engine.add_request(name, {"prompt_token_ids": list(prompt)}, params)
        except VLLMValidationError as error:
            raise SafeDraftError(first_line(error)) from error
        self._running[name] = arrivals
        return name

    def step(self) -> None:
        """One pass over the batch."""
        for output in self._engine.step():
            arrivals = self._running.get(output.request_id)
            if arrivals is None:  # it was taken away meanwhile
                continue
            arrivals.last = time.perf_counter()
            arrivals.first = arrivals.first or arrivals.last
            if output.finished:
                del self._running[output.request_id]

    def finished(self, name: str) -> bool:
        """Whether a request is at its end."""
        return name not in self._running

    def trace(self, name: str) -> Any:
        """What the first rank's ``take_trace`` gives."""
        return self._llm.collective_rpc("take_trace", args=(name,))[0]

    def abort(self, name: str) -> None:
        """Take a request away, if it is not at its end, and what is left of its trace."""
        if self._running.pop(name, None) is not None:
            self._engine.abort_request([name])
        self.trace(name)

    def close(self) -> None:
        """End vLLM's processes."""
        self._engine.engine_core.shutdown()


def load_vllm_pair(
    spec: PairSpec,
    *,
    config: SSDConfig | None = None,
    dtype: str = "auto",
    draft_tokens_up_to: Mapping[int, int] | None = None,
    report: Report = silent,
    **options: Any,
) -> VllmPair:
    """Start vLLM with a pair; ``options`` are vLLM's own engine arguments.

    ``draft_tokens_up_to`` gives T by how many requests run, as in ``Plan.options``; without it,
    T is that of ``config`` at any load, if that names one.

    Raises:
        SafeDraftError: vLLM is not installed, the pair does not suit it, or it does not start.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    prepare_environment()
    require_vllm()
    chosen = plan(spec, config, report)
    tokenizer = chosen.parts.anatomies[0].tokenizer
    arguments = chosen.options(
        {"dtype": dtype, "skip_tokenizer_init": True, "disable_log_stats": True, **options},
        requests_may_set_constants=True,
        traces=True,
        draft_tokens_up_to=draft_tokens_up_to,
    )
    ahead = arguments["speculative_config"]["num_speculative_tokens"]
    engine = Engine(_start(arguments))
    return VllmPair(
        target=spec.target,
        draft=spec.draft,
        tokenizer=tokenizer,
        system=spec.target_system,
        vocabulary=chosen.parts.examination.vocabulary,
        context_length=room_for(0, engine.context_length, ahead),
        end_tokens=chosen.parts.examination.end_tokens,
        config=chosen.config,
        engine=engine,
    )


def _start(arguments: dict[str, Any]) -> Any:
    from vllm import LLM

    try:
        return LLM(**arguments)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise SafeDraftError(f"vLLM does not start: {first_line(error)}") from error
