"""The switch seen from outside: what every bin was compared with, from a reply's matches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from safedraft.core.config import Scheme, SSDConfig
from safedraft.core.switch import Switch


class Bin(NamedTuple):
    """b positions, or the fewer that are decided of the last one."""

    positions: int
    matches: int
    scheme: Scheme
    """What they are decided in."""
    threshold: float
    """What β is compared with at the bin's end."""
    following: Scheme | None
    """What that led to; None while the bin is not full."""

    @property
    def ratio(self) -> float:
        """β, of a bin that is not full so far."""
        return self.matches / self.positions


def bins_of(matched: Iterable[bool], config: SSDConfig) -> list[Bin]:
    """The bins of a reply from whether each of its tokens is the draft's, but for an end token.

    A trace does not keep the thresholds: the switch is run once more.
    """
    switch = Switch(config)
    bins: list[Bin] = []
    decided: list[bool] = []
    for match in matched:
        scheme, threshold = switch.scheme, switch.threshold
        decided.append(match)
        switch.observe(match)
        if len(decided) == config.bin_size:
            bins.append(Bin(len(decided), sum(decided), scheme, threshold, switch.scheme))
            decided = []
    if decided:
        bins.append(Bin(len(decided), sum(decided), switch.scheme, switch.threshold, None))
    return bins
