"""The switch: from the match ratio to a scheme and a strength (Section 4.2, Algorithm 1)."""

from __future__ import annotations

from safedraft.core.config import Scheme, SSDConfig

_ZERO = 1e-10  # what is left of a threshold after its decays counts as nothing below this


class Switch:
    """The state of one request: its scheme, threshold and intersection strength.

    ``observe`` is called once for every decided position; at the end of each bin of b positions it
    compares the match ratio β with the threshold. The scheme it settles on holds from the very next
    position, be that in the middle of a drafted block.
    """

    def __init__(self, config: SSDConfig) -> None:
        self.config = config
        self.scheme = config.initial_scheme
        self.threshold = config.threshold
        self._alpha = config.alpha_intersection
        self._seen = 0
        self._matches = 0
        self._bins = 0  # of the scheme as it is

    @property
    def strength(self) -> float:
        """α of the position to come."""
        if self.scheme is Scheme.UNION:
            return self.config.alpha_union
        return self._alpha

    def observe(self, matched: bool) -> None:
        """Log one decided position; switch or relax when it fills a bin."""
        self._seen += 1
        self._matches += matched
        if self._seen % self.config.bin_size:
            return
        ratio = self._matches / self.config.bin_size
        self._matches = 0
        self._bins += 1
        held = self.scheme is Scheme.UNION and self._bins < self.config.union_bins
        following = Scheme.UNION if held or ratio < self.threshold else Scheme.INTERSECTION
        if following is self.scheme:
            self._relax()
        else:
            self._restart()
        self.scheme = following

    def _relax(self) -> None:
        threshold = self.threshold - self.config.threshold_decay
        self.threshold = threshold if threshold > _ZERO else 0.0
        if self.scheme is Scheme.INTERSECTION:
            self._alpha = max(self._alpha - self.config.alpha_decay, self.config.alpha_min)

    def _restart(self) -> None:
        self.threshold = self.config.threshold
        self._alpha = self.config.alpha_intersection
        self._bins = 0
