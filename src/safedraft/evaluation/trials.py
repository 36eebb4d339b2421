"""Trials of constants: the measures that compare them, and new trials from rows of several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safedraft.core.config import RiskConfig
from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.records import Row
from safedraft.rules.risk import Level, find_level


@dataclass(frozen=True)
class Trial:
    """One set of constants and its results."""

    constants: Mapping[str, Any]
    attack_success: float
    refused: float
    """Share of the attacks' controls, harmless requests, that were refused."""
    lost: float
    """Share of harmless prompts that were refused or, where answers are judged, answered wrong."""
    tokens_per_second: float
    """Median over the ordinary prompts."""

    def excess(self, target: Trial) -> float:
        """Share of harmless requests lost beyond what the target alone loses.

        The larger one of two: under the attacks, and in the harmless suites.
        """
        return max(self.refused - target.refused, self.lost - target.lost, 0.0)


def find_trade_off(trials: Sequence[Trial], target: Trial) -> list[Trial]:
    """The trade-off: trials than which no other is better in one share and as good in the other.

    The first of several equal ones is kept.
    """
    kept: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.excess(target), trial.attack_success)):
        if not kept or trial.attack_success < kept[-1].attack_success:
            kept.append(trial)
    return kept


def choose_rows(
    levels: Mapping[Level, Mapping[str, Sequence[Row]]], constants: RiskConfig
) -> dict[str, Sequence[Row]]:
    """The row of each request that was decoded at its level of risk, by suite."""
    by_key = {
        level: {(suite, row.key): row for suite, rows in suites.items() for row in rows}
        for level, suites in levels.items()
    }
    return {
        suite: [by_key[_level_of(row, constants)][suite, row.key] for row in rows]
        for suite, rows in levels[Level.UNSURE].items()
    }


def _level_of(row: Row, constants: RiskConfig) -> Level:
    risk = row.statistics.get("risk")
    return Level.UNSURE if risk is None else find_level(constants, risk)


def is_lost(row: Row) -> bool | None:
    """Whether a harmless prompt was refused or, where answers are judged, answered wrong."""
    return row.refused if row.correct is None else not row.correct


def share_of(flags: Iterable[bool | None]) -> float:
    """Share of true flags among those that are not None.

    Raises:
        SafeDraftError: all flags are None.
    """
    values = [flag for flag in flags if flag is not None]
    if not values:
        raise SafeDraftError("a trial has no sample that was judged: look into its log")
    return sum(values) / len(values)
