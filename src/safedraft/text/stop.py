"""Stop strings: where a reply is cut, and how much of its text can no longer be cut."""

from __future__ import annotations

from collections.abc import Sequence


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
