"""A rule: SSD that stays in union with one weight of the draft."""

from dataclasses import dataclass

from safedraft.core.composite import Setting, composite
from safedraft.core.config import DraftingConfig, Scheme, Strength
from safedraft.core.rule import State


class AlwaysUnionConfig(DraftingConfig):
    """The constants of the rule."""

    alpha: Strength = 0.8
    """Weight of the draft."""


@dataclass(frozen=True)
class AlwaysUnion:
    """Each position is chosen from the union of both models' ten best tokens."""

    name: str = "always_union"
    config: type[AlwaysUnionConfig] = AlwaysUnionConfig
    after_match: str = "carry"

    def start(self, constants, context):
        return State(Scheme.UNION, constants.alpha)

    def scores(self, states, rows):
        return composite(rows, [Setting(True, state.alpha, 10) for state in states])

    def observe(self, state, decision):
        return None
