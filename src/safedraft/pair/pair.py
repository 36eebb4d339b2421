"""The class that users call: a pair that answers prompts, one or many, whole or as a stream."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard, Unpack, cast, overload

from safedraft.core.config import SSDConfig
from safedraft.core.errors import SafeDraftError
from safedraft.core.generation import RequestBatch
from safedraft.core.rule import Rule
from safedraft.pair.both_prompts import Prompts
from safedraft.pair.in_memory import Tokenizer, take_models
from safedraft.pair.options import Config, GenerateOptions, Sampling, for_each, take_sampling
from safedraft.pair.tokens import TokenPair
from safedraft.text.messages import conversation, turn_begun
from safedraft.text.results import GenerationResult
from safedraft.text.stream import Stream

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Conversation = Sequence[Mapping[str, Any]]
"""Messages: ``{"role": "system" | "user" | "assistant", "content": text or parts of text}``.

The role ``developer`` means ``system``.
"""


@dataclass(frozen=True, repr=False)
class Pair(TokenPair):
    """A target and a draft that fit each other, in an engine.

    Made by ``load_pair``, or by ``from_models`` from two models in memory.
    """

    @classmethod
    def from_models(
        cls,
        target: PreTrainedModel,
        draft: PreTrainedModel,
        *,
        tokenizer: Tokenizer | None,
        draft_tokenizer: Tokenizer | None = None,
        guarded: bool | None = None,
        config: SSDConfig | Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Pair:
        """A pair of two models of Transformers that are in memory, in any dtype, on any device.

        They may be quantized, compiled, spread over several devices, or a ``PeftModel``, whose
        adapters take part. A compiled model is unwrapped, and the model inside decodes.

        Args:
            target: the large model.
            draft: the small one, with its safety training in it.
            tokenizer: tokenizer of the target, or its folder or hub id; None to decode token ids
                only.
            draft_tokenizer: tokenizer of the draft; that of the target if None.
            guarded: whether the draft was trained to refuse; by default that is taken to be so if
                it is a ``PeftModel``. False accepts a draft that was not, without a warning.
            config: the constants, or a mapping of those that are not the published ones.
            fields: further fields of a pair: ``template``, ``template_from``, ``target_system``,
                ``draft_system``.

        Raises:
            IncompatiblePairError: the two models cannot decode together.
            SafeDraftError: a field is unknown, or does not suit the models.

        Warns:
            UnguardedWarning: nothing says that the draft was trained to refuse.
        """
        tokenizers = (tokenizer, draft_tokenizer or tokenizer)
        return cls(**vars(take_models((target, draft), tokenizers, guarded, config, fields)))

    @overload
    def generate(
        self,
        prompt: str | Conversation,
        sampling: Sampling | None = None,
        *,
        system: str | None = None,
        prefill: str = "",
        reasoning: str | None = None,
        config: Config | None = None,
        rule: str | Rule | None = None,
        top_logprobs: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerationResult: ...

    @overload
    def generate(
        self,
        prompt: list[str] | Sequence[Conversation],
        sampling: Sampling | Sequence[Sampling] | None = None,
        *,
        system: str | None = None,
        prefill: str = "",
        reasoning: str | None = None,
        config: Config | None = None,
        rule: str | Rule | None = None,
        top_logprobs: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[GenerationResult]: ...

    def generate(
        self,
        prompt: str | Conversation | list[str] | Sequence[Conversation],
        sampling: Sampling | Sequence[Sampling] | None = None,
        *,
        system: str | None = None,
        prefill: str = "",
        reasoning: str | None = None,
        config: Config | None = None,
        rule: str | Rule | None = None,
        top_logprobs: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerationResult | list[GenerationResult]:
        """Answer a prompt (what the user says, or messages) and return the whole reply.

        Args:
            prompt: text of one user turn, or ``{"role", "content"}`` messages; messages that end in
                an assistant turn are continued. A list of prompts gives a list of replies, decoded
                together.
            system: the system prompt, before the messages.
            prefill: beginning of the assistant's answer.
            reasoning: beginning of the reasoning of a pair that thinks; all of it with a prefill.
            sampling: greedy and at most 512 tokens when not given; an object or a mapping, or, with
                a list of prompts, one for each.
            config: constants in place of the pair's own, or a mapping that replaces some of these.
                A rule with other constants takes those of an object that have the same name.
            rule: the rule by which positions are decided, or its name; by default that of the pair.
            top_logprobs: None: no log probabilities; otherwise those of each token and of this many
                of the most likely tokens at its position, under the distribution it is taken from.
            chat_template_kwargs: variables of the chat templates for this request, in place of
                those of the pair, such as ``{"enable_thinking": False}``.
            options: fields of ``SamplingParams``, each in place of that of ``sampling``, under any
                of their names; ``sampling_params`` and ``logprobs``, as vLLM has them.

        Raises:
            PromptTooLongError: the prompt leaves no room in the context.
            SafeDraftError: nothing to answer, or something the engine cannot do.
        """
        shared: dict[str, Any] = {
            "system": system,
            "prefill": prefill,
            "reasoning": reasoning,
            "config": config,
            "rule": rule,
            "top_logprobs": top_logprobs,
            "chat_template_kwargs": chat_template_kwargs,
            **options,
        }
        if _is_one(prompt):
            return self.stream(prompt, cast("Sampling | None", sampling), **shared).drain()
        return self.generate_many(cast("list[str]", prompt), sampling, **shared)

    def stream(
        self,
        prompt: str | Conversation,
        sampling: Sampling | None = None,
        *,
        system: str | None = None,
        prefill: str = "",
        reasoning: str | None = None,
        config: Config | None = None,
        rule: str | Rule | None = None,
        top_logprobs: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        batch: RequestBatch | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Stream:
        """Like ``generate``, token by token: iterate over it; ``.result`` is the reply so far.

        Args:
            batch: decode together with the other requests of this batch (``pair.engine.batch()``).
        """
        messages = conversation(prompt, prefill, system, reasoning)
        return self.stream_ids(
            self.prompts(messages, chat_template_kwargs),
            sampling,
            config=config,
            rule=rule,
            turn_begun=turn_begun(messages),
            top_logprobs=top_logprobs,
            batch=batch,
            **options,
        )

    def generate_many(
        self,
        prompts: Sequence[str] | Sequence[Conversation],
        sampling: Sampling | Sequence[Sampling] | None = None,
        *,
        system: str | None = None,
        prefill: str = "",
        reasoning: str | None = None,
        config: Config | Sequence[Config] | None = None,
        rule: str | Rule | None = None,
        top_logprobs: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[GenerationResult]:
        """Answer many prompts together; ``sampling`` and ``config`` are for all or for each.

        The seconds of a reply are the time from the start of all to its own end, and the seconds of
        a model are those of the passes that the request took part in.
        """
        if isinstance(prompts, str):
            raise SafeDraftError("generate_many takes a list of prompts: generate takes one")
        messages = [conversation(prompt, prefill, system, reasoning) for prompt in prompts]
        return self.generate_many_ids(
            [self.prompts(one, chat_template_kwargs) for one in messages],
            sampling,
            config=config,
            rule=rule,
            turn_begun=[turn_begun(one) for one in messages],
            top_logprobs=top_logprobs,
            **options,
        )

    def generate_many_ids(
        self,
        prompts: Sequence[Prompts | Sequence[int]],
        sampling: Sampling | Sequence[Sampling] | None = None,
        *,
        config: Config | Sequence[Config] | None = None,
        rule: str | Rule | None = None,
        turn_begun: Sequence[bool | None] | None = None,
        top_logprobs: int | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[GenerationResult]:
        """Like ``generate_many``, from token ids."""
        batch = self.engine.batch()
        samplings = for_each(take_sampling(sampling, options), len(prompts), "sampling")
        configs = for_each(config, len(prompts), "config")
        begun = for_each(turn_begun, len(prompts), "turn_begun")
        streams: list[Stream] = []
        started = time.perf_counter()
        try:
            for ids, own, constants, has_begun in zip(
                prompts, samplings, configs, begun, strict=True
            ):
                streams.append(
                    self.stream_ids(
                        ids,
                        own,
                        config=constants,
                        rule=rule,
                        turn_begun=has_begun,
                        top_logprobs=top_logprobs,
                        batch=batch,
                        **options,
                    )
                )
            _drain_together(streams, started)
        finally:  # after Ctrl-C none of them continues in the engine
            for stream in streams:
                stream.close()
        return [stream.result for stream in streams]

    def __repr__(self) -> str:
        adapter = self.spec.adapter if self.spec else None
        engine = self.engine.name
        return f"Pair({self.target.name!r}, {self.draft.name!r}, {adapter=}, {engine=})"


def _is_one(prompt: object) -> TypeGuard[str | Conversation]:
    """Whether a prompt is one text or one conversation, and not a list of several."""
    if isinstance(prompt, str):
        return True
    return not isinstance(prompt, Sequence) or all(isinstance(one, Mapping) for one in prompt)


def _drain_together(streams: Sequence[Stream], started: float) -> None:
    """Take tokens from all streams of a batch in turn until each has ended."""
    running = list(streams)
    while running:
        for stream in list(running):
            statistics = stream.result.statistics
            first = not statistics.tokens
            try:
                stream.advance()
            except StopIteration:
                running.remove(stream)
            statistics.seconds = time.perf_counter() - started
            if first:
                statistics.first_token_seconds = statistics.seconds
