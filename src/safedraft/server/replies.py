"""Build responses of the OpenAI API from decoded tokens.

The log probabilities are those of the composite distribution that each token was taken from (with
its temperature and cuts), not those of the target. The texts of the tokens, joined, are the
text of the reply: a token that completes no character has an empty text.
"""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from safedraft.prompts.phrases import classify
from safedraft.server import wire
from safedraft.server.errors import APIError
from safedraft.server.metrics import find_answer
from safedraft.server.scheduler import Job
from safedraft.server.tools import CallReader
from safedraft.text.results import Alternative, GenerationResult, Token

_PART = "\N{REPLACEMENT CHARACTER}"

Response = wire.ChatCompletion | wire.Completion
Chunk = wire.ChatCompletionChunk | wire.Completion


@dataclass(frozen=True)
class ResponseBuilder(ABC):
    """Builds the response to one request, whole or in chunks; each route has a subclass."""

    model: str
    logprobs: bool
    telemetry: bool
    end_tokens: frozenset[int]
    """Tokens that end a reply; they have no log probabilities in the response."""
    spell_bytes: Callable[[int], bytes | None] = lambda token: None
    """The bytes of a token that is a part of a character; None if they are not known."""
    replies_per_prompt: int = 1
    is_refusal: Callable[[str], bool] = lambda text: False
    """Whether a reply, or its beginning, is a refusal in place of the form that was asked for."""
    calls: CallReader | None = None
    """Reads the calls of tools in the replies; None where there can be none."""
    guarded: bool = False
    """Whether the replies are decoded with a safety adapter, as the operator set the pair up."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @abstractmethod
    def build_response(self, replies: Sequence[GenerationResult]) -> Response:
        """Build the response from all replies, each of which has ended."""

    @abstractmethod
    def build_first_chunk(self, index: int) -> Chunk | None:
        """Build the chunk before a reply's first token, or return None if the route has none."""

    @abstractmethod
    def build_chunk(self, index: int, token: Token, begun: str) -> Chunk | None:
        """Build the chunk of a token, or return None if the token adds nothing to the response.

        Args:
            index: index of the reply.
            token: the token.
            begun: the text of the reply before it.
        """

    @abstractmethod
    def build_last_chunk(self, index: int, reply: GenerationResult) -> Chunk:
        """Build the chunk that says why a reply ended."""

    @abstractmethod
    def wrap(self, *choices: Any) -> Chunk:
        """Wrap choices of the route's own type in a chunk."""

    def build_usage_chunk(self, replies: Sequence[GenerationResult]) -> Chunk:
        """Build the last chunk of a stream, which holds the usage and no choice."""
        chunk = self.wrap()
        chunk.usage = self.count_usage(replies)
        return chunk

    def count_usage(self, replies: Sequence[GenerationResult]) -> wire.Usage:
        """Count the tokens of every prompt (the longer one of the two models) and every reply."""
        prompts = replies[:: self.replies_per_prompt]
        prompt_tokens = sum(reply.statistics.prompt_tokens for reply in prompts)
        completion_tokens = sum(reply.statistics.tokens for reply in replies)
        return wire.Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )

    def build_telemetry(
        self, tokens: Sequence[Token], reply: GenerationResult | None = None
    ) -> dict[str, wire.Telemetry]:
        """Build SafeDraft's own field of a choice; it is left out unless it was requested.

        Args:
            tokens: the tokens of the choice.
            reply: the reply, if the choice ends it.
        """
        if not self.telemetry:
            return {}
        records = [wire.TokenTelemetry.model_validate(t, from_attributes=True) for t in tokens]
        if reply is None:
            return {"safedraft": wire.Telemetry(tokens=records)}
        verdict = classify(find_answer(reply.text))
        telemetry = wire.Telemetry(
            tokens=records, statistics=reply.statistics.to_dict(), verdict=verdict
        )
        return {"safedraft": telemetry}

    def bytes_of(self, token: Alternative) -> list[int]:
        """The UTF-8 of a token's text, or its own bytes if it is a part of a character."""
        own = self.spell_bytes(token.id) if _PART in token.text else None
        return list(token.text.encode() if own is None else own)

    def name_of(self, token: Alternative) -> str:
        """A token's text, or its bytes as ``bytes:\\xe2`` if it is a part of a character."""
        own = self.spell_bytes(token.id) if _PART in token.text else None
        return token.text if own is None else "bytes:" + "".join(f"\\x{byte:02x}" for byte in own)

    @property
    def reports_tokens(self) -> bool:
        """Whether the response describes every token, and not only the text."""
        return self.logprobs or self.telemetry

    def without_end_tokens(self, tokens: Sequence[Token]) -> list[Token]:
        """Return the tokens that are part of the text."""
        return [token for token in tokens if token.id not in self.end_tokens]


class CompletionResponseBuilder(ResponseBuilder):
    """Builds the responses of ``/v1/completions``; a chunk has the type of a whole response."""

    def build_response(self, replies: Sequence[GenerationResult]) -> wire.Completion:
        """See ``ResponseBuilder``."""
        choices = [
            self._build_choice(index, reply.text, reply.trace, 0, reply)
            for index, reply in enumerate(replies)
        ]
        completion = self.wrap(*choices)
        completion.usage = self.count_usage(replies)
        return completion

    def build_first_chunk(self, index: int) -> None:
        """See ``ResponseBuilder``."""
        return None

    def build_chunk(self, index: int, token: Token, begun: str) -> wire.Completion | None:
        """See ``ResponseBuilder``."""
        if not (token.text or self.reports_tokens):
            return None
        return self.wrap(self._build_choice(index, token.text, [token], len(begun)))

    def build_last_chunk(self, index: int, reply: GenerationResult) -> wire.Completion:
        """See ``ResponseBuilder``."""
        return self.wrap(self._build_choice(index, "", [], len(reply.text), reply))

    def wrap(self, *choices: wire.CompletionChoice) -> wire.Completion:
        """See ``ResponseBuilder``."""
        return wire.Completion(
            id=f"cmpl-{self.id}",
            object="text_completion",
            created=self.created,
            model=self.model,
            choices=list(choices),
        )

    def _build_choice(
        self,
        index: int,
        text: str,
        tokens: Sequence[Token],
        offset: int,
        ended_reply: GenerationResult | None = None,
    ) -> wire.CompletionChoice:
        return wire.CompletionChoice(
            index=index,
            text=text,
            finish_reason=finish_reason_of(ended_reply) if ended_reply else None,
            logprobs=self._build_logprobs(tokens, offset),
            **self.build_telemetry(tokens, ended_reply),
        )

    def _build_logprobs(
        self, tokens: Sequence[Token], offset: int
    ) -> wire.CompletionLogprobs | None:
        if not self.logprobs:
            return None
        tokens = self.without_end_tokens(tokens)
        texts = [token.text for token in tokens]
        return wire.CompletionLogprobs(
            tokens=texts,
            token_logprobs=[logprob_of(token) for token in tokens],
            top_logprobs=[
                {self.name_of(other): other.logprob for other in token.top_logprobs}
                for token in tokens
            ],
            text_offset=list(accumulate(map(len, texts[:-1]), initial=offset)) if texts else [],
        )


async def collect_response(builder: ResponseBuilder, jobs: Sequence[Job]) -> dict[str, Any]:
    """Wait for all replies and return the body of a response that is not streamed.

    Raises:
        APIError: a reply could not be finished.
    """
    return builder.build_response([await job.wait() for job in jobs]).to_json()


async def stream_events(
    builder: ResponseBuilder, jobs: Sequence[Job], with_usage: bool
) -> AsyncIterator[str]:
    """Yield the server-sent events of a streamed response; an error is sent as the last event.

    The replies are decoded together, but their chunks are sent one reply after the other.
    """
    try:
        for index, job in enumerate(jobs):
            async for chunk in _stream_chunks(builder, index, job):
                if with_usage:
                    chunk.usage = None  # set, so that null is sent, as OpenAI's streams do
                yield _format_event(chunk)
        if with_usage:
            yield _format_event(builder.build_usage_chunk([job.reply for job in jobs]))
        yield "data: [DONE]\n\n"
    except APIError as error:
        yield _format_event(error.body)


async def _stream_chunks(builder: ResponseBuilder, index: int, job: Job) -> AsyncIterator[Chunk]:
    if first_chunk := builder.build_first_chunk(index):
        yield first_chunk
    begun = ""
    async for token in job:
        if chunk := builder.build_chunk(index, token, begun):
            yield chunk
        begun += token.text
    yield builder.build_last_chunk(index, job.reply)


def finish_reason_of(reply: GenerationResult) -> wire.FinishReason:
    """Why a reply ended."""
    assert reply.finish_reason != "interrupted"  # nobody waits for an interrupted job
    return reply.finish_reason


def logprob_of(token: Token) -> float:
    """The log probability of a token in a response that reports them."""
    assert token.logprob is not None  # requested when the stream was opened
    return token.logprob


def _format_event(body: wire.WireModel) -> str:
    return f"data: {json.dumps(body.to_json())}\n\n"
