"""The switch: from the match ratio to a scheme and a weight (Section 4.2, Algorithm 1)."""

from __future__ import annotations

from safedraft.core.config import Scheme, SSDConfig
from safedraft.core.rule import State

_ZERO = 1e-10  # what is left of a threshold after its decays counts as nothing below this


class Switch(State):
    """The state of one request under SSD: its scheme, threshold and weight α.

    ``observe`` is called once for every decided position except an end token. At the end of each
    bin of b positions it compares the match ratio β with the threshold. The scheme it settles on
    holds from the very next position on, in the middle of a block too.

    Args:
        config: the constants.
        scheme: scheme of the first position; the configuration's ``initial_scheme`` by default.
    """

    def __init__(self, config: SSDConfig, scheme: Scheme | None = None) -> None:
        super().__init__(scheme or config.initial_scheme, threshold=config.threshold)
        self.config = config
        self._alpha_intersection = config.alpha_intersection
        self.decided = 0
        self._matches = 0
        self._bins = 0  # that the scheme has lasted
        self._weigh()

    def observe(self, matched: bool) -> float | None:
        """Log one decided position; switch or relax if it ends a bin, and return its β."""
        self.decided += 1
        self._matches += matched
        if self.decided % self.config.bin_size:
            return None
        ratio = self._matches / self.config.bin_size
        self._matches = 0
        self._bins += 1
        held = self.scheme is Scheme.UNION and self._bins < self.config.union_bins
        assert self.threshold is not None
        following = Scheme.UNION if held or ratio < self.threshold else Scheme.INTERSECTION
        if following is self.scheme:
            self._relax()
        else:
            self._restart()
        self.scheme = following
        self._weigh()
        return ratio

    def _relax(self) -> None:
        assert self.threshold is not None
        threshold = self.threshold - self.config.threshold_decay
        self.threshold = threshold if threshold > _ZERO else 0.0
        if self.scheme is Scheme.INTERSECTION:
            alpha = self._alpha_intersection - self.config.alpha_decay
            self._alpha_intersection = max(alpha, self.config.alpha_min)

    def _restart(self) -> None:
        self.threshold = self.config.threshold
        self._alpha_intersection = self.config.alpha_intersection
        self._bins = 0

    def _weigh(self) -> None:
        union = self.scheme is Scheme.UNION
        self.alpha = self.config.alpha_union if union else self._alpha_intersection
