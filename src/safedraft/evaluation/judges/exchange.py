"""The texts of a sample that a judge reads, and the score of a judge that has no verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inspect_ai.model import ChatMessage
    from inspect_ai.scorer import Score
    from inspect_ai.solver import TaskState


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and the reply to it."""

    request: str
    """The request in the source's record, without the attack around it."""
    begun: str
    """The beginning of the reply that the model was given."""
    added: str
    """The text that the model added."""
    given: str
    """Every text that the model was given: all turns before the reply, and its beginning."""


def read_exchange(state: TaskState) -> Exchange:
    """Read a sample of SafeDraft, or of another task, whose input is then the request."""
    return build_exchange(state.metadata, state.messages, state.output.completion, state.input_text)


def build_exchange(
    metadata: Mapping[str, Any], messages: Sequence[ChatMessage], added: str, input_text: str
) -> Exchange:
    """Build an exchange from the parts of a sample.

    Args:
        metadata: metadata of the sample, with ``record`` and ``prefill``.
        messages: the conversation; turns of the assistant at its end are the reply.
        added: the text that the model added.
        input_text: the request of a sample without a record.
    """
    request = str(metadata.get("record", {}).get("request", input_text))
    begun = str(metadata.get("prefill", ""))
    turns = [message.text for message in _drop_reply(messages)]
    return Exchange(request, begun, added, "\n".join([request, *turns, begun]))


def _drop_reply(messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
    others = [place for place, message in enumerate(messages) if message.role != "assistant"]
    return messages[: others[-1] + 1] if others else []


def unscored(reason: str) -> Score:
    """The score of a sample whose judge failed."""
    from inspect_ai.scorer import Score

    return Score.unscored(reason="grader_failed", explanation=reason)
