"""From tokens to what OpenAI's clients read, in OpenAI's own types.

The log probabilities are of the composite distribution that each token was taken from (under its
temperature, cut by ``top_k`` and ``top_p``), not of the target's. Their texts, joined, are the
text of the reply: a token that completes no character has none.
"""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar, cast

from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from openai.types.chat.chat_completion_chunk import ChoiceLogprobs as ChunkLogprobs
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob, TopLogprob
from openai.types.completion_choice import Logprobs
from pydantic import BaseModel

from safedraft.server.errors import APIError
from safedraft.server.scheduler import Job
from safedraft.text.chat import Reply, Token

_Logprobs = TypeVar("_Logprobs", ChoiceLogprobs, ChunkLogprobs)

_TOLD = (
    "id", "text", "matched", "scheme", "strength", "draft_probability", "target_probability",
    "block",
)  # fmt: skip


@dataclass(frozen=True)
class Answer(ABC):
    """The response to one request; a route's own puts tokens into OpenAI's words."""

    model: str
    logprobs: bool
    telemetry: bool
    end_tokens: frozenset[int]
    """They end a reply and are no part of what is told of it."""
    replies_a_prompt: int = 1
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @abstractmethod
    def whole(self, replies: Sequence[Reply]) -> BaseModel:
        """All replies, finished."""

    @abstractmethod
    def opening(self, index: int) -> BaseModel | None:
        """A stream's chunk before the first token of a reply, if the route has one."""

    @abstractmethod
    def chunk(self, index: int, token: Token, offset: int) -> BaseModel:
        """A stream's chunk with a token that stands ``offset`` characters into its reply."""

    @abstractmethod
    def closing(self, index: int, reply: Reply) -> BaseModel:
        """A stream's chunk that tells how a reply ended."""

    @abstractmethod
    def cost(self, replies: Sequence[Reply]) -> BaseModel:
        """A stream's last chunk: its usage."""

    def usage(self, replies: Sequence[Reply]) -> CompletionUsage:
        """Tokens of every prompt (of the longer of the two models' own) and of every reply."""
        prompts = replies[:: self.replies_a_prompt]
        read = sum(reply.statistics.prompt_tokens for reply in prompts)
        said = sum(reply.statistics.tokens for reply in replies)
        return CompletionUsage(prompt_tokens=read, completion_tokens=said, total_tokens=read + said)

    def told(self, tokens: Sequence[Token], reply: Reply | None = None) -> dict[str, Any]:
        """SafeDraft's own field of a choice, where it is asked for and allowed."""
        if not self.telemetry:
            return {}
        extension: dict[str, Any] = {
            "tokens": [{name: getattr(token, name) for name in _TOLD} for token in tokens]
        }
        if reply:
            extension["statistics"] = reply.statistics.to_dict()
        return {"safedraft": extension}

    def shown(self, tokens: Sequence[Token]) -> list[Token]:
        """Those whose log probability is told."""
        return [token for token in tokens if token.id not in self.end_tokens]


class ChatAnswer(Answer):
    """``/v1/chat/completions``."""

    def whole(self, replies: Sequence[Reply]) -> BaseModel:
        """As ``Answer``."""
        choices = [
            Choice(
                index=index,
                finish_reason=cast(Any, reply.finish_reason),
                message=ChatCompletionMessage(role="assistant", content=reply.text, refusal=None),
                logprobs=self._logprobs(reply.trace, ChoiceLogprobs),
                **self.told(reply.trace, reply),
            )
            for index, reply in enumerate(replies)
        ]
        return ChatCompletion(
            id=f"chatcmpl-{self.id}",
            object="chat.completion",
            created=self.created,
            model=self.model,
            choices=choices,
            usage=self.usage(replies),
        )

    def opening(self, index: int) -> BaseModel:
        """As ``Answer``."""
        delta = ChoiceDelta(role="assistant", content="")
        return self._chunk(ChunkChoice(index=index, delta=delta, finish_reason=None, logprobs=None))

    def chunk(self, index: int, token: Token, offset: int) -> BaseModel:
        """As ``Answer``."""
        choice = ChunkChoice(
            index=index,
            delta=ChoiceDelta(content=token.text),
            finish_reason=None,
            logprobs=self._logprobs([token], ChunkLogprobs),
            **self.told([token]),
        )
        return self._chunk(choice)

    def closing(self, index: int, reply: Reply) -> BaseModel:
        """As ``Answer``."""
        choice = ChunkChoice(
            index=index,
            delta=ChoiceDelta(),
            finish_reason=cast(Any, reply.finish_reason),
            logprobs=None,
            **self.told([], reply),
        )
        return self._chunk(choice)

    def cost(self, replies: Sequence[Reply]) -> BaseModel:
        """As ``Answer``."""
        chunk = self._chunk()
        chunk.usage = self.usage(replies)
        return chunk

    def _chunk(self, *choices: ChunkChoice) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=f"chatcmpl-{self.id}",
            object="chat.completion.chunk",
            created=self.created,
            model=self.model,
            choices=list(choices),
        )

    def _logprobs(self, tokens: Sequence[Token], kind: type[_Logprobs]) -> _Logprobs | None:
        if not self.logprobs:
            return None
        content = [
            ChatCompletionTokenLogprob(
                token=token.text,
                bytes=list(token.text.encode()),
                logprob=_logprob(token),
                top_logprobs=[
                    TopLogprob(token=text, bytes=list(text.encode()), logprob=logprob)
                    for _, text, logprob in token.top_logprobs
                ],
            )
            for token in self.shown(tokens)
        ]
        return kind(content=content, refusal=None)


class CompletionAnswer(Answer):
    """``/v1/completions``; what streams has the type of what does not."""

    def whole(self, replies: Sequence[Reply]) -> BaseModel:
        """As ``Answer``."""
        choices = [
            self._choice(index, reply.text, reply.trace, 0, reply)
            for index, reply in enumerate(replies)
        ]
        completion = self._completion(*choices)
        completion.usage = self.usage(replies)
        return completion

    def opening(self, index: int) -> None:
        """As ``Answer``."""
        return None

    def chunk(self, index: int, token: Token, offset: int) -> BaseModel:
        """As ``Answer``."""
        return self._completion(self._choice(index, token.text, [token], offset))

    def closing(self, index: int, reply: Reply) -> BaseModel:
        """As ``Answer``."""
        return self._completion(self._choice(index, "", [], len(reply.text), reply))

    def cost(self, replies: Sequence[Reply]) -> BaseModel:
        """As ``Answer``."""
        completion = self._completion()
        completion.usage = self.usage(replies)
        return completion

    def _completion(self, *choices: CompletionChoice) -> Completion:
        return Completion(
            id=f"cmpl-{self.id}",
            object="text_completion",
            created=self.created,
            model=self.model,
            choices=list(choices),
        )

    def _choice(
        self,
        index: int,
        text: str,
        tokens: Sequence[Token],
        offset: int,
        ended: Reply | None = None,
    ) -> CompletionChoice:
        # OpenAI's type has no place for a reply that goes on, and its streams send null.
        return CompletionChoice.construct(
            index=index,
            text=text,
            finish_reason=ended.finish_reason if ended else None,
            logprobs=self._logprobs(tokens, offset),
            **self.told(tokens, ended),
        )

    def _logprobs(self, tokens: Sequence[Token], offset: int) -> Logprobs | None:
        if not self.logprobs:
            return None
        shown = self.shown(tokens)
        texts = [token.text for token in shown]
        return Logprobs(
            tokens=texts,
            token_logprobs=[_logprob(token) for token in shown],
            top_logprobs=[
                {text: logprob for _, text, logprob in token.top_logprobs} for token in shown
            ],
            text_offset=list(accumulate(map(len, texts[:-1]), initial=offset)) if texts else [],
        )


async def whole(answer: Answer, jobs: Sequence[Job]) -> dict[str, Any]:
    """The response of a request that does not stream.

    Raises:
        APIError: a reply could not be finished.
    """
    return _plain(answer.whole([await job.finished() for job in jobs]))


async def events(answer: Answer, jobs: Sequence[Job], with_usage: bool) -> AsyncIterator[str]:
    """The server-sent events of a request that streams; an error is the last of them.

    Several replies follow one another, though they are decoded in turns.
    """
    try:
        for index, job in enumerate(jobs):
            async for chunk in _chunks(answer, index, job):
                # OpenAI's streams say null until the chunk that tells the usage.
                yield _event(_plain(chunk) | ({"usage": None} if with_usage else {}))
        if with_usage:
            yield _event(_plain(answer.cost([job.reply for job in jobs])))
        yield "data: [DONE]\n\n"
    except APIError as error:
        yield _event(error.body)


async def _chunks(answer: Answer, index: int, job: Job) -> AsyncIterator[BaseModel]:
    if opening := answer.opening(index):
        yield opening
    offset = 0
    async for token in job:
        if token.text or answer.logprobs or answer.telemetry:
            yield answer.chunk(index, token, offset)
        offset += len(token.text)
    yield answer.closing(index, job.reply)


def _logprob(token: Token) -> float:
    assert token.logprob is not None  # asked for when the stream was opened
    return token.logprob


def _plain(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json", exclude_unset=True)


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"
