"""What is measured: every suite is a line of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.attacks import (
    Attack,
    Prefill,
    SuffixSearch,
    direct,
    high_match,
    late_harm,
    nested_fiction,
    suffixes,
    templates,
)

Kind = Literal["attack", "over_refusal", "accuracy", "ordinary"]

NEW_TOKENS = 48
"""Tokens a reply, where neither the suite nor the user says otherwise."""


@dataclass(frozen=True)
class Suite:
    """One kind of question to a defense."""

    name: str
    kind: Kind
    family: str
    """Under which reports put it."""
    source: str
    """Name of the source that its prompts come from when no other is given."""
    attack: Attack = direct
    max_new_tokens: int | None = None
    """Where the suite needs another length than the rest of a run."""
    needs_answers: bool = False
    """Whether its attack begins with compliant answers, which are best drawn together."""
    instruction: str = ""
    """What every request ends with."""

    @property
    def prefill_tokens(self) -> int | None:
        """How many tokens are prefilled, where the suite is about that."""
        return self.attack.tokens if isinstance(self.attack, Prefill) else None


def _attack(name: str, attack: Attack, family: str | None = None, **settings: int | bool) -> Suite:
    return Suite(name, "attack", family or name, "harmbench", attack, **settings)  # type: ignore[arg-type]


_PREFILLS = {f"prefill_{n}": Prefill(n) for n in (0, 5, 10, 20, 40)}

SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        _attack("direct", direct),
        *(
            _attack(name, prefill, "prefill", needs_answers=prefill.tokens > 0)
            for name, prefill in _PREFILLS.items()
        ),
        _attack("templates", templates),
        _attack("suffixes", suffixes),
        _attack("nested_fiction", nested_fiction),
        _attack("late_harm", late_harm, "adaptive", max_new_tokens=112),
        _attack("high_match", high_match, "adaptive", needs_answers=True),
        _attack("suffix_search", SuffixSearch(), "adaptive"),
        Suite("over_refusal", "over_refusal", "over_refusal", "looks_unsafe"),
        Suite(
            "arithmetic",
            "accuracy",
            "arithmetic",
            "arithmetic",
            max_new_tokens=384,
            instruction="\nThink step by step. End with a line that says 'Answer:' and the number.",
        ),
        Suite("ordinary", "ordinary", "ordinary", "ordinary"),
    )
}
"""Every suite by name."""


def find_suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        SafeDraftError: there is none; lists those there are.
    """
    if name not in SUITES:
        close = get_close_matches(name, SUITES, n=1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise SafeDraftError(f"no suite is called {name!r}{meant}; known are {', '.join(SUITES)}")
    return SUITES[name]
