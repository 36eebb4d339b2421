"""Speculative Safety-Aware Decoding: the composite, and the switch that picks its scheme.

Wang, Zhu and Cheng, EMNLP 2025, arXiv 2508.17739, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from safedraft.core.composite import Scores, Setting, composite
from safedraft.core.config import CompositeConfig, Scheme, SSDConfig
from safedraft.core.rows import Rows
from safedraft.core.rule import AfterMatch, Context, Decision, State
from safedraft.core.switch import Switch


@dataclass(frozen=True)
class SSD:
    """Each position is chosen from F, and the match ratio switches between the schemes."""

    name: str = "ssd"
    config: type[SSDConfig] = SSDConfig
    after_match: AfterMatch = "carry"

    def start(self, constants: SSDConfig, context: Context) -> Switch:
        """Create the request's switch in the scheme of its first position."""
        return Switch(constants, constants.first_scheme(context.turn_begun))

    def scores(self, states: Sequence[State], rows: Rows) -> Scores:
        """Score with F in the scheme of each request."""
        return composite_of(cast("Sequence[Switch]", states), rows)

    def observe(self, state: State, decision: Decision) -> float | None:
        """Hand the match to the switch."""
        return cast("Switch", state).observe(decision.matched)


class CompositeState(Protocol):
    """A state under which F is composed."""

    scheme: Scheme | None
    alpha: float

    @property
    def config(self) -> CompositeConfig:
        """The request's constants."""
        ...


def composite_of(states: Sequence[CompositeState], rows: Rows) -> Scores:
    """F of each position under the scheme, weight and constants of its request's state."""
    return composite(rows, [_setting(state) for state in states])


def _setting(state: CompositeState) -> Setting:
    config = state.config
    union = state.scheme is Scheme.UNION
    return Setting(union, state.alpha, config.sample_space_size, config.kappa)
