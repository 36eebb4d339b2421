"""Metrics, a log line and a header for each reply of vLLM's server.

vLLM creates this module's middleware in each of its API server processes, where replies end.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.v1.engine import output_processor

from safedraft.engines.vllm.metrics import count_reply
from safedraft.engines.vllm.options import HARMLESS, KEY, choice_of_tokens
from safedraft.prompts.phrases import is_refusal
from safedraft.server.access_log import log_reply, show_access_log
from safedraft.server.metrics import find_answer
from safedraft.server.vllm.operator import Operator

_OWN_WORDS = {"abort": "interrupted", "error": "interrupted"}
"""Why a reply ended, where SafeDraft's own server has another word for it than vLLM."""


class RecordedState(output_processor.RequestState):  # type: ignore[misc]
    """vLLM's state of a reply while it is decoded; the reply is counted and logged at its end."""

    operator: Operator
    """The operator's settings; they are the same for all replies."""

    @classmethod
    @functools.wraps(output_processor.RequestState.from_new_request.__func__)
    def from_new_request(cls, *args: Any, request: Any, **kwargs: Any) -> RecordedState:
        """Extends vLLM's method: notes the time of arrival, and whether the defense is changed."""
        state: RecordedState = super().from_new_request(*args, request=request, **kwargs)
        state._began = time.perf_counter()
        state._guarded = cls.operator.guarded and not _changes_defense(request.sampling_params)
        return state

    @functools.wraps(output_processor.RequestState.make_request_output)
    def make_request_output(
        self,
        new_token_ids: list[int],
        pooling_output: Any,
        finish_reason: Any,
        stop_reason: Any,
        kv_transfer_params: Mapping[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Extends vLLM's method: records the reply if this output is its last."""
        output = super().make_request_output(
            new_token_ids,
            pooling_output,
            finish_reason,
            stop_reason,
            kv_transfer_params,
            *args,
            **kwargs,
        )
        if finish_reason is not None:
            reason = str(finish_reason)
            self._record(_OWN_WORDS.get(reason, reason), (kv_transfer_params or {}).get(KEY))
        return output

    def _record(self, finish_reason: str, statistics: Mapping[str, float] | None) -> None:
        """Count the reply, and log it without its text."""
        tokens = self.detokenizer.num_output_tokens()
        guarded = self._guarded and tokens > 0
        text = getattr(self.detokenizer, "output_text", "")
        count_reply(finish_reason, guarded=guarded, refused=is_refusal(find_answer(text)))
        log_reply(
            id=quote(self.external_req_id),  # a client may have named it
            model=self.operator.name,
            tokens=tokens,
            seconds=time.perf_counter() - self._began,
            union=statistics["union_share"] if statistics else None,
            guarded=guarded,
            finish_reason=finish_reason,
        )


def _changes_defense(params: Any) -> bool:
    """Whether a request has constants, a rule or a beginning of the turn of its own.

    What acts on tokens of the client's choice counts too.
    """
    own = (params.extra_args or {}).keys() - HARMLESS
    return bool(own or choice_of_tokens(params))


def record_replies(operator: Operator) -> None:
    """Record every reply of vLLM's engine in this process from now on."""
    show_access_log()
    RecordedState.operator = operator
    output_processor.RequestState = RecordedState


class RecordReplies:
    """Records the replies of this process; adds the operator's header, if it is switched on."""

    def __init__(self, app: ASGIApp) -> None:
        operator = Operator.from_environment()
        self._app = app
        self._header = operator.header
        record_replies(operator)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                message["headers"] = [*message.get("headers", ()), self._header]
            await send(message)

        shown = self._header and scope["type"] == "http" and scope["method"] == "POST"
        await self._app(scope, receive, send_with_header if shown else send)
