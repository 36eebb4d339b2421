"""The bins of a reply's trace, with their match ratios and thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from safedraft.core.config import Scheme
from safedraft.text.results import Token


class Bin(NamedTuple):
    """A bin of b positions; the last bin may have fewer."""

    positions: int
    matches: int
    scheme: str
    """The scheme at its last position."""
    threshold: float
    """The threshold that β is compared with at the bin's end."""
    following: str | None
    """The scheme after the comparison; None while the bin is not full."""

    @property
    def ratio(self) -> float:
        """β, or the match ratio so far if the bin is not full."""
        return self.matches / self.positions


def split_bins(tokens: Sequence[Token]) -> list[Bin]:
    """Split a trace where the switch reported a match ratio. An end token belongs to no bin."""
    bins: list[list[Token]] = [[]]
    for token in tokens:
        if token.threshold is None or token.scheme is None:
            continue
        bins[-1].append(token)
        if token.match_ratio is not None:
            bins.append([])
    schemes = [str(members[0].scheme) for members in bins if members]
    return [
        _make_bin(members, *schemes[number + 1 : number + 2])
        for number, members in enumerate(members for members in bins if members)
    ]


def _make_bin(tokens: Sequence[Token], following: str | None = None) -> Bin:
    last = tokens[-1]
    assert last.scheme is not None
    assert last.threshold is not None
    matches = sum(token.matched for token in tokens)
    if last.match_ratio is None:
        following = None
    elif following is None:  # no later bin shows the scheme
        below = last.match_ratio < last.threshold
        following = Scheme.UNION if below else Scheme.INTERSECTION
    return Bin(len(tokens), matches, last.scheme, last.threshold, following)
