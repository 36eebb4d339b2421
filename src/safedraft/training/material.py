"""Counts of the training material, harmful and harmless side by side.

A draft learns whatever tells the two apart. A cell that is empty on one side only is a shortcut: a
frame, a language or a beginning that means harm, whatever is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from safedraft.training.config import TrainingConfig
from safedraft.training.requests import TrainingRequests
from safedraft.training.training_data import Begun, begin_replies


class Cell(NamedTuple):
    """The number of conversations that have a property in common."""

    what: str
    harmful: int
    harmless: int


def count_cells(harmful: Iterable[Begun], harmless: Iterable[Begun]) -> list[Cell]:
    """Count conversations by surroundings and beginning, by language and by origin."""
    sides = [
        Counter(name for one in side for name in _cells_of(one)) for side in (harmful, harmless)
    ]
    return [Cell(what, *(side[what] for side in sides)) for what in sorted({*sides[0], *sides[1]})]


def describe_material(requests: TrainingRequests, config: TrainingConfig) -> list[Cell]:
    """Count the conversations that requests give, with a harmful reply begun as in one epoch."""
    return count_cells(
        *(
            begin_replies(part, config, config.direct_share)
            for part in (requests.harmful, requests.ordinary)
        )
    )


def _cells_of(one: Begun) -> list[str]:
    request = one.conversation.request
    begun = "begun" if one.opening else "not begun"
    return [
        f"{one.conversation.surroundings}, {begun}",
        f"language {request.language}",
        f"from {request.source}",
    ]
