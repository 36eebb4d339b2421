"""Build the responses of conversations: contents, refusals and calls of tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from safedraft.server import wire
from safedraft.server.replies import ResponseBuilder, finish_reason_of, logprob_of
from safedraft.server.tools import Call
from safedraft.text.results import GenerationResult, Token


class ChatResponseBuilder(ResponseBuilder):
    """Builds the responses of ``/v1/chat/completions``."""

    def build_response(self, replies: Sequence[GenerationResult]) -> wire.ChatCompletion:
        """See ``ResponseBuilder``."""
        choices = [
            wire.ChatChoice(
                index=index,
                finish_reason=self._finish_reason(reply),
                message=self._build_message(index, reply.text),
                logprobs=self._build_logprobs(reply.trace, self.is_refusal(reply.text)),
                **self.build_telemetry(reply.trace, reply),
            )
            for index, reply in enumerate(replies)
        ]
        return wire.ChatCompletion(
            id=f"chatcmpl-{self.id}",
            object="chat.completion",
            created=self.created,
            model=self.model,
            choices=choices,
            usage=self.count_usage(replies),
        )

    def build_first_chunk(self, index: int) -> wire.ChatCompletionChunk:
        """See ``ResponseBuilder``."""
        delta = wire.Delta(role="assistant", content="")
        choice = wire.ChunkChoice(index=index, delta=delta, finish_reason=None, logprobs=None)
        return self.wrap(choice)

    def build_chunk(self, index: int, token: Token, begun: str) -> wire.ChatCompletionChunk | None:
        """See ``ResponseBuilder``."""
        text = begun + token.text
        refuses = self.is_refusal(text)
        delta = self._build_delta(index, begun, text, ended=False)
        if not (delta.model_fields_set or self.reports_tokens):
            return None
        choice = wire.ChunkChoice(
            index=index,
            delta=delta,
            finish_reason=None,
            logprobs=self._build_logprobs([token], refuses),
            **self.build_telemetry([token]),
        )
        return self.wrap(choice)

    def build_last_chunk(self, index: int, reply: GenerationResult) -> wire.ChatCompletionChunk:
        """See ``ResponseBuilder``."""
        choice = wire.ChunkChoice(
            index=index,
            delta=self._build_delta(index, reply.text, reply.text, ended=True),
            finish_reason=self._finish_reason(reply),
            logprobs=None,
            **self.build_telemetry([], reply),
        )
        return self.wrap(choice)

    def wrap(self, *choices: wire.ChunkChoice) -> wire.ChatCompletionChunk:
        """See ``ResponseBuilder``."""
        return wire.ChatCompletionChunk(
            id=f"chatcmpl-{self.id}",
            object="chat.completion.chunk",
            created=self.created,
            model=self.model,
            choices=list(choices),
        )

    def _build_message(self, index: int, text: str) -> wire.AssistantMessage:
        if self.is_refusal(text):
            return wire.AssistantMessage(role="assistant", content=None, refusal=text)
        content, calls = self._read(text, ended=True)
        if not calls:
            return wire.AssistantMessage(role="assistant", content=content, refusal=None)
        return wire.AssistantMessage(
            role="assistant",
            content=content or None,
            refusal=None,
            tool_calls=[
                wire.ToolCall(**self._write_call(index, at, call)) for at, call in enumerate(calls)
            ],
        )

    def _build_delta(self, index: int, begun: str, text: str, *, ended: bool) -> wire.Delta:
        """The part of the reply ``text`` that is not in its beginning ``begun``."""
        fields: dict[str, Any] = {}
        if self.is_refusal(text):
            if added := text.removeprefix(begun):
                fields["refusal"] = added
            return wire.Delta(**fields)
        said, made = self._read(begun, ended=False)
        content, calls = self._read(text, ended=ended)
        if added := content.removeprefix(said):
            fields["content"] = added
        if new := calls[len(made) :]:
            fields["tool_calls"] = [
                wire.ToolCallDelta(index=at, **self._write_call(index, at, call))
                for at, call in enumerate(new, len(made))
            ]
        return wire.Delta(**fields)

    def _read(self, text: str, *, ended: bool) -> tuple[str, list[Call]]:
        return self.calls.read(text, ended=ended) if self.calls else (text, [])

    def _write_call(self, index: int, at: int, call: Call) -> dict[str, Any]:
        function = wire.CalledFunction(name=call.name, arguments=call.arguments)
        return {"id": f"call_{self.id}_{index}_{at}", "type": "function", "function": function}

    def _finish_reason(self, reply: GenerationResult) -> wire.FinishReason:
        reason = finish_reason_of(reply)
        calls = reason == "stop" and self._read(reply.text, ended=True)[1]
        return "tool_calls" if calls else reason

    def _build_logprobs(self, tokens: Sequence[Token], refuses: bool) -> wire.ChatLogprobs | None:
        if not self.logprobs:
            return None
        written = [
            wire.TokenLogprob(
                token=token.text,
                bytes=list(token.text.encode()),
                logprob=logprob_of(token),
                top_logprobs=[
                    wire.TopLogprob(
                        token=other.text, bytes=self.bytes_of(other), logprob=other.logprob
                    )
                    for other in token.top_logprobs
                ],
            )
            for token in self.without_end_tokens(tokens)
        ]
        content, refusal = (None, written) if refuses else (written, None)
        return wire.ChatLogprobs(content=content, refusal=refusal)
