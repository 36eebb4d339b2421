"""Stop strings: where a reply is cut, and how much of its text can no longer be cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Return the index where the first stop string in ``text`` starts, or None without one."""
    starts = [start for start in (text.find(stop) for stop in stops) if start >= 0]
    return min(starts, default=None)


def settled_length(text: str, stops: Sequence[str]) -> int:
    """Return how many leading characters of ``text`` no stop string can cut, whatever follows.

    ``text`` has no complete stop string. Its longest end that begins a stop string is unsettled.
    """
    longest = max((len(stop) - 1 for stop in stops), default=0)
    lengths = range(min(longest, len(text)), 0, -1)
    unsettled = (n for n in lengths if any(stop.startswith(text[-n:]) for stop in stops))
    return len(text) - next(unsettled, 0)


def control_stops(tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> frozenset[int]:
    """Return the ids of the stop strings that are control tokens.

    A control token has no text in a reply, so that it ends one as an end token does.

    Raises:
        SafeDraftError: a stop string has a control token and more, which no reply's text contains.
    """
    control = {
        token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    for stop in stops:
        inside = next((text for text in control if text in stop), None)
        if inside and stop not in control:
            raise SafeDraftError(
                f"stop {stop!r} is never found: {inside!r} in it is a control token, which has no "
                f"text; give {inside!r} alone"
            )
    return frozenset(control[stop] for stop in stops if stop in control)
