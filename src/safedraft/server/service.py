"""From what a client asks to replies on their way: permissions, limits, streams for the queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.core.errors import PromptTooLong, SafeDraftError, problems
from safedraft.pair import Pair, Prompts
from safedraft.server.errors import APIError
from safedraft.server.metrics import Metrics
from safedraft.server.replies import Answer, ChatAnswer, CompletionAnswer
from safedraft.server.requests import Asked, ChatRequest, CompletionRequest, TokenizeRequest
from safedraft.server.scheduler import Job, Scheduler
from safedraft.server.settings import ServerSettings
from safedraft.text.chat import Message, Stream, conversation

if TYPE_CHECKING:
    from safedraft.core.decode import Decoder

T = TypeVar("T")
Replies = tuple[Answer, list[Job]]


class Service:
    """One pair and what its operator allows; ``scheduler.run`` has to be running."""

    def __init__(self, pair: Pair, settings: ServerSettings) -> None:
        if settings.allow_completions and pair.draft.system:
            raise SafeDraftError(
                f"{settings.name} keeps its draft safe by a system prompt, which raw text has no "
                "place for: serve it without completions"
            )
        self.pair, self.settings = pair, settings
        self.metrics = Metrics()
        self.scheduler = Scheduler(settings.limits, lambda job: self.metrics.count(job.reply))
        self.metrics.watch("active_replies", "Decoded in turns", lambda: self.scheduler.active)
        self.metrics.watch("waiting_replies", "In line", lambda: self.scheduler.waiting)

    async def chat(self, asked: ChatRequest) -> Replies:
        """The replies to a conversation.

        Raises:
            APIError: what is asked is not allowed, too much, or too much just now.
        """
        if asked.top_logprobs is not None and not asked.logprobs:
            raise _invalid("top_logprobs", "needs logprobs to be true")
        if None not in (asked.max_tokens, asked.max_completion_tokens):
            raise _invalid("max_tokens", "give this or max_completion_tokens, not both")
        messages = self._conversation([message.plain() for message in asked.messages])
        return await self._replies(
            ChatAnswer, asked, [partial(self.pair.stream, messages)], "messages"
        )

    async def completion(self, asked: CompletionRequest) -> Replies:
        """The replies to raw texts, ``n`` to each.

        Raises:
            APIError: as ``chat``; or the operator does not allow raw texts.
        """
        if not self.settings.allow_completions:
            only = "this server takes conversations only: use /v1/chat/completions"
            raise APIError(403, "completions_disabled", only)
        streams = [partial(self._stream_text, text) for text in asked.prompt]
        return await self._replies(CompletionAnswer, asked, streams, "prompt")

    async def tokenize(self, asked: TokenizeRequest) -> Prompts:
        """Both models' token ids of a conversation or a text.

        Raises:
            APIError: neither or both are given, or as ``chat``.
        """
        if asked.model is not None:
            self.require_model(asked.model)
        if asked.messages is not None and asked.prompt is None:
            messages = self._conversation([message.plain() for message in asked.messages])
            work, name = lambda: self.pair.prompts(conversation(messages)), "messages"
        elif asked.prompt is not None and asked.messages is None:
            work, name = partial(self.pair.text_prompts, asked.prompt), "prompt"
        else:
            raise _invalid("messages", "give either messages or a prompt")
        return await self.scheduler.call(partial(_or_invalid, work, name))

    async def page(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams,
        config: SSDConfig,
        decoders: Sequence[Decoder],
    ) -> list[Job]:
        """One conversation decoded in each of several ways, for the playground.

        Whom the operator lets in there may set constants and begin replies; every bound holds.

        Raises:
            APIError: as ``chat``.
        """
        limits = self.settings.limits
        self._require_few(messages)
        self._require_few_replies(len(decoders))
        if sampling.max_new_tokens > limits.new_tokens:
            raise _invalid("max_new_tokens", f"at most {limits.new_tokens} are decoded")
        self._require_short_blocks("config", config)
        stream = partial(self.pair.stream, messages, sampling=sampling, config=config)
        opens = [partial(stream, decoder=decoder) for decoder in decoders]
        return await self.scheduler.submit([partial(_or_invalid, o, "messages") for o in opens])

    def require_model(self, name: str) -> None:
        """Refuse a name that is not the pair's.

        Raises:
            APIError: 404.
        """
        known = self.settings.name
        if name != known:
            message = f"there is no model {name!r} here, only {known!r}"
            raise APIError(404, "model_not_found", message, "model")

    async def _replies(
        self,
        kind: type[Answer],
        asked: Asked,
        streams: Sequence[Callable[..., Stream]],
        prompt: str,
    ) -> Replies:
        """``n`` replies from each of ``streams``, which come from the parameter ``prompt``."""
        self.require_model(asked.model)
        self._require_within_limits(asked, len(streams))
        config, count = self._config(asked), asked.n or 1
        each = [stream for stream in streams for _ in range(count)]
        settings = {"config": config, "top_logprobs": asked.alternatives}
        opens = [
            partial(self._open, partial(stream, sampling=sampling, **settings), asked, prompt)
            for stream, sampling in zip(each, self._sampling(asked, len(each)), strict=True)
        ]
        answer = kind(
            model=self.settings.name,
            logprobs=asked.alternatives is not None,
            telemetry=self._telemetry(asked),
            end_tokens=self.pair.end_tokens,
            replies_a_prompt=count,
        )
        return answer, await self.scheduler.submit(opens)

    def _open(self, stream: Callable[[], Stream], asked: Asked, prompt: str) -> Stream:
        """Encode and check a prompt; nothing is decoded yet."""
        opened = _or_invalid(stream, prompt)
        name, wanted = asked.new_tokens
        room = self.pair.context_length - opened.reply.statistics.prompt_tokens
        if wanted is not None and wanted > room:
            raise APIError(
                400,
                "context_length_exceeded",
                f"{name} is {wanted}, and the shorter context has room for {room} new tokens",
                name,
            )
        return opened

    def _stream_text(self, text: str, config: SSDConfig | None, **settings: Any) -> Stream:
        # Who sends raw text may have begun the reply in it.
        begun = (config or self.pair.config).for_turn(begun=True)
        return self.pair.stream_ids(self.pair.text_prompts(text), config=begun, **settings)

    def _conversation(self, messages: list[Message]) -> list[Message]:
        self._require_few(messages)
        if messages[-1]["role"] == "assistant" and not self.settings.allow_prefill:
            message = "the last message is the assistant's: this server begins replies itself"
            raise APIError(400, "prefill_disabled", message, "messages")
        return messages

    def _require_few_replies(self, count: int) -> None:
        limits = self.settings.limits
        most = min(limits.replies, limits.active + limits.waiting)
        if count > most:
            raise _invalid("n", f"at most {most} replies are given, all prompts together")

    def _require_few(self, messages: Sequence[Message]) -> None:
        most = self.settings.limits.messages
        if len(messages) > most:
            raise _invalid("messages", f"at most {most} are taken")

    def _require_within_limits(self, asked: Asked, prompts: int) -> None:
        limits = self.settings.limits
        name, wanted = asked.new_tokens
        if wanted is not None and wanted > limits.new_tokens:
            raise _invalid(name, f"at most {limits.new_tokens} are decoded")
        self._require_few_replies((asked.n or 1) * prompts)
        if (asked.alternatives or 0) > self._most_alternatives:
            raise _invalid("top_logprobs", f"at most {self._most_alternatives} are told")
        if len(asked.stop or ()) > limits.stop_strings:
            raise _invalid("stop", f"at most {limits.stop_strings} strings are taken")
        if any(len(text) > limits.stop_characters for text in asked.stop or ()):
            raise _invalid("stop", f"a string has at most {limits.stop_characters} characters")
        if asked.stream_options and not asked.stream:
            raise _invalid("stream_options", "needs stream to be true")

    @property
    def _most_alternatives(self) -> int:
        """Likely tokens that either scheme has, so that their number does not tell the scheme.

        Union has more of them than intersection, or fewer where a strength above 1 leaves some no
        probability.
        """
        config = self.pair.config
        if self.settings.allow_telemetry:
            return self.pair.vocabulary
        exceeds = max(config.alpha_intersection, config.alpha_min, config.alpha_union) > 1
        return 0 if exceeds else config.sample_space_size

    def _sampling(self, asked: Asked, count: int) -> list[SamplingParams]:
        try:
            return [asked.sampling(index, self.settings.limits) for index in range(count)]
        except ValidationError as error:
            found = error.errors()[0]
            raise _invalid(str(found["loc"][0]), found["msg"]) from error

    def _telemetry(self, asked: Asked) -> bool:
        wanted = bool(asked.safedraft and asked.safedraft.telemetry)
        if wanted and not self.settings.allow_telemetry:
            message = "this server tells nothing of its defense"
            raise APIError(400, "telemetry_disabled", message, "safedraft.telemetry")
        return wanted

    def _config(self, asked: Asked) -> SSDConfig | None:
        changes = asked.safedraft.config if asked.safedraft else {}
        if not changes:
            return None
        if not self.settings.requests_may_set_constants:
            message = "this server's requests do not set the defense's constants"
            raise APIError(400, "constants_disabled", message, "safedraft.config")
        own = self.pair.config
        try:
            changed = SSDConfig.model_validate(own.model_dump() | changes)
        except ValidationError as error:
            raise _invalid("safedraft.config", problems(error)[0]) from error
        self._require_short_blocks("safedraft.config", changed)
        return changed

    def _require_short_blocks(self, name: str, config: SSDConfig) -> None:
        """A block is a turn, in which all others wait."""
        most = self.pair.config.draft_tokens
        if config.draft_tokens > most:
            raise _invalid(name, f"draft_tokens: at most {most}")


def _or_invalid(work: Callable[[], T], name: str) -> T:
    """What ``work`` gives; what a client can mend about it is a 400 that names the parameter."""
    try:
        return work()
    except PromptTooLong as error:
        raise APIError(400, "context_length_exceeded", str(error), name) from error
    except SafeDraftError as error:
        raise _invalid(name, str(error)) from error


def _invalid(name: str, wrong: str) -> APIError:
    return APIError(400, "invalid_value", f"{name}: {wrong}", name)
