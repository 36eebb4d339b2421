"""Guard filter: a guard model at an endpoint reads requests, replies or both.

The usual arrangement of guard models such as Llama Guard (Inan et al., arXiv 2312.06674): the guard
is shown a conversation and says ``safe`` or ``unsafe`` first. Any OpenAI-compatible server can run
it. Nothing is delivered that the guard has not read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from safedraft.core.config import Constants, SamplingParams
from safedraft.core.errors import SafeDraftError
from safedraft.defenses.base import add_cost, answer_undefended, make_refusal, refuse
from safedraft.models.endpoint import Endpoint
from safedraft.text.messages import Message, begun_text, conversation, turn_begun
from safedraft.text.results import GenerationResult, Statistics

if TYPE_CHECKING:
    from safedraft.pair import Pair

VERDICT_TOKENS = 16
_VERDICT = re.compile(r"\W*(safe|unsafe)\b", re.IGNORECASE)


class GuardConfig(Constants):
    """The guard that is asked, and the texts that it reads."""

    endpoint: str = ""
    """Base URL of the API, as in ``http://localhost:8000/v1``."""

    guard: str = ""
    """The guard's name at the endpoint."""

    read: Literal["both", "input", "output"] = "both"
    """Whether the guard reads the request, the exchange with the reply, or one after the other."""

    @model_validator(mode="after")
    def _name_a_guard(self) -> Self:
        if not (self.endpoint and self.guard):
            raise ValueError("guard_filter needs a guard: guard_filter:endpoint=URL,guard=NAME")
        find_endpoint(self.endpoint, self.guard)
        return self


@dataclass(frozen=True)
class GuardFilter:
    """Refuses what the guard calls unsafe."""

    config: ClassVar[type[GuardConfig]] = GuardConfig

    def __call__(
        self, pair: Pair, messages: Sequence[Message], sampling: SamplingParams, config: Constants
    ) -> GenerationResult:
        """Return the target's reply, or a refusal of an unsafe request or exchange.

        The statistics include the seconds of the guard, but not its passes, which another server
        makes.

        Raises:
            SafeDraftError: as ``Defense``, or no guard is named, it cannot be reached, or it says
                neither safe nor unsafe.
        """
        guard = config if isinstance(config, GuardConfig) else GuardConfig()
        messages = conversation(messages)
        refusal = refuse(pair, messages, sampling)
        started = time.perf_counter()
        readings = _list_inputs(messages) if guard.read != "output" else []
        unsafe = any(is_unsafe(guard, reading) for reading in readings)
        asked = Statistics(seconds=time.perf_counter() - started)
        if unsafe:
            return add_cost(refusal, asked)
        reply = answer_undefended(pair, messages, sampling, config)
        if guard.read != "input":
            reply = _read_output(pair, guard, messages, reply)
        return add_cost(reply, asked)


guard_filter = GuardFilter()


def _read_output(
    pair: Pair, guard: GuardConfig, messages: Sequence[Message], reply: GenerationResult
) -> GenerationResult:
    """Return a reply that has been read, or a refusal; its first token arrives with its last."""
    started = time.perf_counter()
    turn = begun_text(messages) + reply.text
    asked = [*_list_finished(messages), {"role": "assistant", "content": turn}]
    unsafe = bool(turn.strip()) and is_unsafe(guard, asked)
    work = Statistics(seconds=time.perf_counter() - started)
    withheld = add_cost(make_refusal(pair, reply), reply.statistics) if unsafe else reply
    read = add_cost(withheld, work)
    return replace(
        read, statistics=replace(read.statistics, first_token_seconds=read.statistics.seconds)
    )


def _list_finished(messages: Sequence[Message]) -> list[Message]:
    """The turns before the reply."""
    return list(messages[:-1] if turn_begun(messages) else messages)


def _list_inputs(messages: Sequence[Message]) -> list[list[Message]]:
    """The inputs of the guard: the turns up to the user's last one, and with a begun reply."""
    begun, finished = begun_text(messages), _list_finished(messages)
    with_beginning = [[*finished, {"role": "assistant", "content": begun}]] if begun else []
    return [finished, *with_beginning]


def is_unsafe(guard: GuardConfig, messages: Sequence[Message]) -> bool:
    """Whether the guard calls the last turn of a conversation unsafe.

    Raises:
        SafeDraftError: the guard cannot be asked, or its first word is neither safe nor unsafe.
    """
    endpoint = find_endpoint(guard.endpoint, guard.guard)
    verdict = endpoint.ask(_join_system(messages), VERDICT_TOKENS)
    match = _VERDICT.match(verdict)
    if match is None:
        raise SafeDraftError(
            f"the guard {guard.guard} says neither safe nor unsafe but {verdict[:80]!r}: "
            "use a model that begins with one of these words"
        )
    return match[1].lower() == "unsafe"


def _join_system(messages: Sequence[Message]) -> list[Message]:
    """Put a system prompt before the first user turn: guards know the turns of two speakers."""
    if messages[0]["role"] != "system":
        return list(messages)
    system, first, *others = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]


@cache
def find_endpoint(url: str, model: str) -> Endpoint:
    """The endpoint of a guard, one object for all requests, which share its connections.

    Raises:
        SafeDraftError: the URL is invalid.
    """
    return Endpoint(url, model, "guard")
