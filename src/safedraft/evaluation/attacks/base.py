"""The protocol of an attack, and the functions that several attacks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from safedraft.core.errors import SafeDraftError
from safedraft.prompts.split import unit_hash
from safedraft.text.messages import Message

if TYPE_CHECKING:
    from safedraft.pair import Pair
    from safedraft.prompts.sources import Record

_T = TypeVar("_T")


class SkipSampleError(SafeDraftError):
    """The attack cannot be built from this record; the sample counts in no rate."""


class Attack(Protocol):
    """Builds a conversation from a record; an entry point in ``safedraft.attacks`` names one.

    It is applied to harmful requests and to harmless ones alike, and must not tell them apart.
    """

    def __call__(self, record: Record, pair: Pair) -> list[Message]:
        """Build the conversation; if it ends in an assistant turn, the defense continues that turn.

        Args:
            record: the request that is to be answered.
            pair: the models, with the configuration of the attacked defense.

        Raises:
            SkipSampleError: the attack cannot be built from this record.
            SafeDraftError: something the attack needs is missing.
        """
        ...


@runtime_checkable
@runtime_checkable
class DrawsAnswers(Protocol):
    """An attack that needs the target's answers to its requests, one a request.

    In a run they are generated in batches before the attack is applied, which is several times as
    fast; the attack then finds them in the cache.
    """

    def draw_answers(
        self,
        records: Sequence[Record],
        pair: Pair,
        report: Callable[[int, int], None] | None = None,
    ) -> Sequence[str | None]:
        """Generate the answers that the cache lacks.

        Args:
            records: the requests.
            pair: the pair whose target answers.
            report: progress of the generation, as in ``draw_replies``.

        Returns:
            For each record its answer, or None if the attack will skip the record.

        Raises:
            SafeDraftError: the target has no tokenizer.
        """
        ...


def build_messages(text: str, prefill: str = "") -> list[Message]:
    """Build a conversation: a user message and, if ``prefill`` is given, how the reply begins."""
    user: Message = {"role": "user", "content": text}
    return [user, {"role": "assistant", "content": prefill}] if prefill else [user]


def begin_thinking(messages: Sequence[Message], pair: Pair) -> list[Message]:
    """Make the beginning of the reply that of its reasoning, for a pair that thinks first."""
    *earlier, last = messages
    if last["role"] != "assistant" or not pair.thinks:
        return list(messages)
    return [*earlier, {"role": "assistant", "reasoning": last["content"], "content": ""}]


def choose(choices: Sequence[_T], record: Record) -> _T:
    """Pick one of ``choices``: always the same one for the same request and for its control."""
    return choices[int(unit_hash(record.variant_key) * 1_000_003) % len(choices)]
