"""SSD that knows how risky a request is: the switch starts where the request calls for it.

Not part of the paper. SSD learns whether a request is harmful from the match ratio, which needs a
bin of tokens and is misled by how an answer begins: a draft that was trained to refuse after a
compliant opening also refuses a harmless question whose answer has begun so. Here the risk that
``core.risk`` reads decides:

- above ``risky_above`` every position is in union from the first one on, whether an answer has
  begun or not, until a bin ends with a match ratio of at least the threshold, which does not decay;
- below ``harmless_below`` the scheme stays in intersection, under a weight of its own, ``α_H``;
- in between SSD decides as it is published.

The risk is the largest that was read of the request. With ``reading_bins`` it is read again as the
reply grows: where one request of several in a message is harmful, the first reading hardly shows
it, and those inside the reply do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import cast

from safedraft.core.composite import Scores
from safedraft.core.config import RiskConfig, Scheme
from safedraft.core.errors import SafeDraftError
from safedraft.core.rows import Rows
from safedraft.core.rule import AfterMatch, Context, Decision, State
from safedraft.core.switch import Switch
from safedraft.rules.ssd import composite_of


class Level(Enum):
    """The three levels of risk, by the bounds of the constants."""

    HARMLESS = "harmless"
    UNSURE = "unsure"
    RISKY = "risky"


def find_level(constants: RiskConfig, risk: float) -> Level:
    """The level of a risk between the bounds of ``constants``."""
    if risk > constants.risky_above:
        return Level.RISKY
    return Level.HARMLESS if risk < constants.harmless_below else Level.UNSURE


class RiskSwitch(Switch):
    """SSD's switch, whose constants follow from the risk of the request."""

    def __init__(self, config: RiskConfig, scheme: Scheme) -> None:
        super().__init__(config, scheme)
        self.constants = config
        self.level: Level | None = None
        self.reads_risk_at = 0

    def assess(self, risk: float) -> None:
        """Choose the constants for a risk, unless a higher one was read before."""
        super().assess(risk)
        assert self.risk is not None
        level = find_level(self.constants, self.risk)
        self.reads_risk_at = self._find_next_reading(level, self.risk)
        if level is not self.level:
            self.level = level
            self.config, scheme = self._choose(level)
            self.scheme = scheme or self.scheme
            self.harmless = level is Level.HARMLESS
            self.follows_target = self.harmless and self._is_lossless()
            self._restart()
            self._weigh()

    def _find_next_reading(self, level: Level, risk: float) -> int | None:
        """The position before which the risk is read again; None if that would change nothing."""
        every = self.constants.reading_bins * self.constants.bin_size
        again = every and level is not Level.RISKY and risk > self.constants.reading_above
        return self.decided + every if again else None

    def _is_lossless(self) -> bool:
        """Whether a harmless request gets the target's best token: it is in S, or P replaces F."""
        return self.constants.alpha_harmless == 0 and self.constants.kappa == 1

    def _choose(self, level: Level) -> tuple[RiskConfig, Scheme | None]:
        """The constants of a level, and the scheme that it begins in; None leaves it as it is."""
        own = self.constants
        if level is Level.RISKY:
            return own.replace(threshold_decay=0.0), Scheme.UNION
        if level is Level.UNSURE:
            return own, None
        weight = own.alpha_harmless
        kept = own.replace(threshold=0.0, alpha_intersection=weight, alpha_min=weight)
        return kept, Scheme.INTERSECTION


@dataclass(frozen=True)
class Risk:
    """SSD, whose constants and first scheme follow from the risk of the request."""

    name: str = "risk"
    config: type[RiskConfig] = RiskConfig
    after_match: AfterMatch = "carry"

    def start(self, constants: RiskConfig, context: Context) -> RiskSwitch:
        """Create a switch that waits for the risk.

        Raises:
            SafeDraftError: the draft has no probe from which the risk is read.
        """
        if context.risk is None:
            raise SafeDraftError(
                "the rule risk needs a draft whose adapter comes with a risk probe: train one "
                "(safedraft train-risk --help), or decode by SSD alone (rule='ssd')"
            )
        switch = RiskSwitch(constants, constants.first_scheme(context.turn_begun))
        switch.reading = context.risk
        return switch

    def scores(self, states: Sequence[State], rows: Rows) -> Scores:
        """Score with F in the scheme of each request."""
        return composite_of(cast("Sequence[RiskSwitch]", states), rows)

    def observe(self, state: State, decision: Decision) -> float | None:
        """Hand the match to the switch."""
        return cast("RiskSwitch", state).observe(decision.matched)
