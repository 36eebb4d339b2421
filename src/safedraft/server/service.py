"""Turn requests into jobs of the scheduler, within the operator's permissions and limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import ValidationError

from safedraft.core.config import SamplingParams, SSDConfig, StructuredOutputs
from safedraft.core.errors import SafeDraftError
from safedraft.pair import Pair, Prompts
from safedraft.pair.options import require_able
from safedraft.server import wire
from safedraft.server.access_log import log_reply
from safedraft.server.chat_replies import ChatResponseBuilder
from safedraft.server.errors import APIError, convert_errors, describe, invalid_value
from safedraft.server.messages import ChatMessage
from safedraft.server.metrics import Metrics
from safedraft.server.own_parameters import OwnParameters
from safedraft.server.replies import (
    CompletionResponseBuilder,
    ResponseBuilder,
)
from safedraft.server.requests import (
    ChatRequest,
    CompletionRequest,
    SafeDraftOptions,
    SamplingRequest,
    TokenizeRequest,
)
from safedraft.server.scheduler import Job, Scheduler
from safedraft.server.settings import ServerSettings
from safedraft.server.tools import Tool, make_reader, marks_calls, require_tools
from safedraft.text.messages import Message, conversation, turn_begun
from safedraft.text.reasoning import Thinking
from safedraft.text.stream import Stream
from safedraft.text.token_bytes import token_bytes

Submission = tuple[ResponseBuilder, list[Job]]


class Service:
    """Serves one pair; ``scheduler.run`` must be running."""

    def __init__(self, pair: Pair, settings: ServerSettings) -> None:
        if settings.allow_completions and pair.draft.system:
            raise SafeDraftError(
                f"the draft of {settings.name} needs its system prompt to be safe, and raw text "
                "has none: serve the pair without completions"
            )
        self.pair, self.settings = pair, settings
        self.metrics = Metrics()
        self.scheduler = Scheduler(settings.limits, self._record)
        self._batch = pair.engine.batch()
        self._compiling = asyncio.Semaphore(1)
        self.metrics.add_gauge("active_replies", "Decoded in turns", lambda: self.scheduler.active)
        self.metrics.add_gauge("waiting_replies", "In the queue", lambda: self.scheduler.waiting)

    def _record(self, job: Job) -> None:
        """Count a reply that has ended, and log it without its text."""
        reply, decided = job.reply, [token.scheme for token in job.reply.trace if token.scheme]
        guarded = job.guarded and bool(decided)
        self.metrics.count(reply, guarded)
        log_reply(
            id=job.id,
            model=self.settings.name,
            tokens=reply.statistics.tokens,
            seconds=reply.statistics.seconds,
            union=decided.count("union") / len(decided) if decided else 0.0,
            guarded=guarded,
            finish_reason=reply.finish_reason,
        )

    async def submit_chat(self, request: ChatRequest) -> Submission:
        """Queue the replies to a conversation.

        Raises:
            APIError: the request is not allowed or exceeds a limit, or the queue is full.
        """
        if request.top_logprobs is not None and not request.logprobs:
            raise invalid_value("top_logprobs", "it requires logprobs to be true")
        if None not in (request.max_tokens, request.max_completion_tokens):
            raise invalid_value("max_tokens", "it excludes max_completion_tokens")
        messages = self._read_messages(request.messages)
        variables = self._read_variables(request.chat_template_kwargs)
        if request.reasoning_effort and self.pair.thinking(variables) is not Thinking.OFF:
            raise invalid_value("reasoning_effort", "replies begin with reasoning here")
        tools = self._read_tools(request.tools if request.callable_tools else None)
        streams = [partial(self._stream_chat, messages, variables, tools)]
        return await self._submit(ChatResponseBuilder, request, streams, "messages", variables)

    async def submit_completion(self, request: CompletionRequest) -> Submission:
        """Queue the replies to raw texts, ``n`` to each.

        Raises:
            APIError: see ``submit_chat``; or the operator does not allow raw texts.
        """
        if not self.settings.allow_completions:
            message = "This server accepts only conversations. Use /v1/chat/completions."
            raise APIError(403, "completions_disabled", message)
        streams = [partial(self._stream_text, text) for text in request.prompt]
        return await self._submit(CompletionResponseBuilder, request, streams, "prompt")

    async def tokenize(self, request: TokenizeRequest) -> Prompts:
        """Return both models' token ids of a conversation or a text.

        Raises:
            APIError: not exactly one of messages and prompt is given; or see ``submit_chat``.
        """
        if request.model is not None:
            self.require_model(request.model)
        if request.messages is not None and request.prompt is None:
            messages = self._read_messages(request.messages)
            variables = self._read_variables(request.chat_template_kwargs)
            tools = self._read_tools(request.tools)
            work, name = (
                lambda: self.pair.prompts(conversation(messages), variables, tools),
                "messages",
            )
        elif request.prompt is not None and request.messages is None:
            work, name = partial(self.pair.text_prompts, request.prompt), "prompt"
        else:
            raise invalid_value("messages", "either messages or prompt is required, but not both")
        return await self.scheduler.call(partial(convert_errors, work, name))

    def describe(self) -> wire.PairDescription:
        """Describe the pair and what the operator allows."""
        pair, settings = self.pair, self.settings
        kind = type(pair.config) if pair.probe else SSDConfig
        schema = kind.model_json_schema()
        schema["properties"]["draft_tokens"]["maximum"] = pair.config.draft_tokens
        return wire.PairDescription(
            target=pair.target.name,
            draft=pair.draft.name,
            warnings=list(pair.warnings),
            rule=pair.rule,
            thinks=pair.thinks,
            allow_prefill=settings.allow_prefill,
            requests_may_set_constants=settings.requests_may_set_constants,
            max_new_tokens=settings.limits.new_tokens,
            max_temperature=settings.limits.temperature,
            config=pair.config.model_dump(mode="json", include=set(kind.model_fields)),
            config_schema=schema,
        )

    def require_model(self, name: str) -> None:
        """Refuse any model except the pair.

        Raises:
            APIError: the name is not the pair's (404).
        """
        served_name = self.settings.name
        if name != served_name:
            message = f"The model {name!r} does not exist. This server has only {served_name!r}."
            raise APIError(404, "model_not_found", message, "model")

    async def _submit(
        self,
        builder_class: type[ResponseBuilder],
        request: SamplingRequest,
        streams: Sequence[Callable[..., Stream]],
        prompt_name: str,
        variables: Mapping[str, Any] | None = None,
    ) -> Submission:
        """Queue ``n`` replies from each of ``streams``, made of the parameter ``prompt_name``."""
        self.require_model(request.model)
        self._require_within_limits(request, len(streams))
        own = OwnParameters(request.safedraft or SafeDraftOptions(), self.pair, self.settings)
        config, rule, count = own.read_config(), own.read_rule(), request.n or 1
        shifted = own.read_shift(request.chosen_shift)
        guarded = not shifted and self._is_guarded(config, rule, variables)
        repeated = [stream for stream in streams for _ in range(count)]
        form = request.build_form(marked=marks_calls(self.pair))
        samplings = self._read_sampling(request, form, len(repeated))
        convert = partial(convert_errors, name=prompt_name, find_name=request.find_name)
        convert(partial(require_able, self.pair, samplings[0]))
        await self._require_form(form, request.form_name)
        settings = {"config": config, "rule": rule, "top_logprobs": request.alternatives}
        openers = [
            partial(convert, partial(stream, sampling=sampling, **settings))
            for stream, sampling in zip(repeated, samplings, strict=True)
        ]
        builder = builder_class(
            model=self.settings.name,
            logprobs=request.alternatives is not None,
            telemetry=own.read_telemetry(),
            end_tokens=convert_errors(partial(self.pair.end_tokens_of, samplings[0]), "stop"),
            replies_per_prompt=count,
            spell_bytes=self._spell_bytes,
            is_refusal=request.is_refusal,
            calls=make_reader(self.pair, request.function_names, variables),
            guarded=guarded,
        )
        jobs = await self.scheduler.submit(
            openers, builder.id, guarded=guarded, form_name=request.form_name
        )
        return builder, jobs

    async def _require_form(self, form: StructuredOutputs | None, name: str) -> None:
        """Refuse a form that cannot be compiled, before any reply of the request is queued.

        A large schema takes seconds to compile: one at a time, and the decoding continues.
        """
        if form is None:
            return
        maximum = self.settings.limits.schema_bytes
        schema = form.grammar or json.dumps(form.json_schema)
        if len(schema) > maximum:
            raise invalid_value(name, f"a schema may have at most {maximum} bytes")
        self.scheduler.require_running()
        work = partial(convert_errors, partial(self.pair.constrain, form), name)
        async with self._compiling:
            await asyncio.to_thread(work)

    def _read_tools(self, tools: Sequence[Tool] | None) -> list[dict[str, Any]]:
        """The tools that a prompt shows, as the client described them."""
        if tools:
            convert_errors(partial(require_tools, self.pair), "tools")
        return [tool.model_dump(exclude_unset=True) for tool in tools or ()]

    def _is_guarded(
        self, config: SSDConfig | None, rule: str | None, variables: Mapping[str, Any] | None
    ) -> bool:
        """Whether a request is decoded with a safety adapter, as the operator set the pair up.

        Constants and a rule of the request's own can switch the defense off, and in another mode of
        thinking the draft was never tested.
        """
        own_mode = not variables or self.pair.thinking(variables) is self.pair.thinking()
        own_rule = rule in (None, self.pair.rule) and config in (None, self.pair.config)
        return self.pair.guarded and own_rule and own_mode

    def _spell_bytes(self, token: int) -> bytes | None:
        tokenizer = self.pair.target.tokenizer
        return token_bytes(tokenizer, token) if tokenizer else None

    def _stream_chat(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any] | None,
        tools: Sequence[Mapping[str, Any]],
        **settings: Any,
    ) -> Stream:
        turns = conversation(messages)
        return self.pair.stream_ids(
            self.pair.prompts(turns, variables, tools),
            turn_begun=turn_begun(turns),
            batch=self._batch,
            **settings,
        )

    def _stream_text(self, text: str, config: SSDConfig | None, **settings: Any) -> Stream:
        # Raw text may already contain the beginning of the reply.
        return self.pair.stream_ids(
            self.pair.text_prompts(text),
            config=config,
            turn_begun=True,
            batch=self._batch,
            **settings,
        )

    def _read_messages(self, chat_messages: Sequence[ChatMessage]) -> list[Message]:
        messages = [message.to_message() for message in chat_messages]
        self._require_few_messages(messages)
        if messages[-1]["role"] == "assistant" and not self.settings.allow_prefill:
            message = (
                "The last message must not be the assistant's. This server does not continue it."
            )
            raise APIError(400, "prefill_disabled", message, "messages")
        return messages

    def _read_variables(self, given: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Variables of the chat template, none of which takes the pair out of its mode.

        Raises:
            APIError: the pair sets another value, replies would begin in another mode than that of
                the pair, whose draft is trained for it, or no template reads the variable.
        """
        name, own = "chat_template_kwargs", self.template_variables
        for variable, value in (given or {}).items():
            if variable in own and own[variable] != value:
                raise invalid_value(name, f"{variable} is {json.dumps(own[variable])} here")
        if not given:
            return None
        convert_errors(partial(self.pair.require_variables, given), name)
        mode = convert_errors(partial(self.pair.thinking, given), name)
        if mode is not self.pair.thinking() and not self.settings.requests_may_set_constants:
            raise invalid_value(
                name, f"thinking is {self.pair.thinking().value} here and cannot be changed"
            )
        return given

    @property
    def template_variables(self) -> Mapping[str, Any]:
        """The variables of the chat template that the pair sets."""
        return (self.pair.spec.template if self.pair.spec else None) or {}

    def _require_few_replies(self, count: int) -> None:
        limits = self.settings.limits
        maximum = min(limits.replies, limits.active + limits.waiting)
        if count > maximum:
            raise invalid_value("n", f"at most {maximum} replies to all prompts are allowed")

    def _require_few_messages(self, messages: Sequence[Message]) -> None:
        maximum = self.settings.limits.messages
        if len(messages) > maximum:
            raise invalid_value("messages", f"at most {maximum} are allowed")

    def _require_within_limits(self, request: SamplingRequest, prompts: int) -> None:
        limits = self.settings.limits
        self._require_few_replies((request.n or 1) * prompts)
        if (request.alternatives or 0) > self._max_alternatives:
            raise invalid_value("top_logprobs", f"at most {self._max_alternatives} are allowed")
        for name in ("stop", "stop_token_ids"):
            if len(getattr(request, name) or ()) > limits.stop_strings:
                raise invalid_value(name, f"at most {limits.stop_strings} are allowed")
        if any(len(text) > limits.stop_characters for text in request.stop or ()):
            raise invalid_value(
                "stop", f"a string may have at most {limits.stop_characters} characters"
            )
        if request.stream_options and not request.stream:
            raise invalid_value("stream_options", "it requires stream to be true")

    @property
    def _max_alternatives(self) -> int:
        """Number of likely tokens that both schemes have, so that it does not reveal the scheme.

        Union has more of them than intersection, or fewer if a strength above 1 leaves some of them
        without probability.
        """
        config = self.pair.config
        if self.settings.allow_telemetry:
            return self.pair.vocabulary
        exceeds = max(config.alpha_intersection, config.alpha_min, config.alpha_union) > 1
        return 0 if exceeds else config.sample_space_size

    def _read_sampling(
        self, request: SamplingRequest, form: StructuredOutputs | None, count: int
    ) -> list[SamplingParams]:
        limits = self.settings.limits
        try:
            return [request.build_sampling(index, limits, form) for index in range(count)]
        except ValidationError as error:
            problem = error.errors()[0]
            raise invalid_value(str(problem["loc"][0]), describe(problem)) from error
