"""Profiles: the extent of a measurement, in stages that can be run and resumed one by one.

A stage has a fixed number of requests for each suite. What it can show is said by
``Stage.resolution``: an attack that never succeeds among 32 requests may still succeed in 11 of
100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safedraft.core.errors import SafeDraftError
from safedraft.core.plugins import unknown_name
from safedraft.evaluation.intervals import rate
from safedraft.evaluation.matrix import Matrix

PAIR = ("target_only", "ssd", "risk")
"""The target alone, SSD alone, and SSD with the risk of the request."""

RIVALS = (*PAIR, "ssd_paper", "safedecoding", "easd", "ada_rethinking")
"""Published methods that need nothing but the pair; a guard filter also needs an endpoint."""

BASELINES = (
    *(*PAIR, "always_refuse", "self_reminder", "ensemble_weight"),
    "ssd:no_adapter=true,label=ssd_bare_draft",
)
"""Defenses that any other should be better than: refusing everything, a system prompt, a mean of
the two models, and SSD without a safe draft."""

CORE = ("direct", "prefill_20", "prefill_text_20", "role_play", "nested_fiction", "late_harm")
"""One suite of each kind of attack."""

BEGINNINGS = (
    *("prefill_5", "prefill_opening", "prefill_code", "prefill_json", "prefill_text_5"),
    *("prefill_text_100", "ratchet_1", "ratchet_7"),
)
"""Suites in which the attacker has begun the reply."""

WORDINGS = (
    *("templates", "suffixes", "frames", "system_prompts", "histories", "encodings"),
    *("long_context", "short_answers", "copying", "quiz", "trigger_words", "json_schema"),
    "json_schema_only",
)
"""Suites in which the attacker has words and turns alone."""


@dataclass(frozen=True)
class Stage:
    """One run of ``safedraft eval``: defenses on suites, with a number of requests for each.

    Greedy stages share a folder of logs, so that what two of them have in common runs once.
    """

    name: str
    defenses: Sequence[str]
    suites: Sequence[str]
    limit: int
    """Number of requests of each suite; attacks have as many controls."""
    temperature: float = 0.0
    replies: int = 1

    @property
    def resolution(self) -> str:
        """The 95% intervals of 0% and of 50% at the stage's number of requests."""
        none, half = rate([False] * self.limit), rate([n % 2 == 0 for n in range(self.limit)])
        assert none.high is not None
        assert half.low is not None
        assert half.high is not None
        return (
            f"n = {self.limit} a suite: 0% means at most {none.high:.0%}, and about 50% means "
            f"{half.low:.0%} to {half.high:.0%}"
        )

    def plan(self, matrix: Matrix) -> Matrix:
        """The matrix that runs this stage, with all other settings of ``matrix``."""
        return replace(
            matrix,
            defenses=self.defenses,
            suites=self.suites,
            limit=self.limit,
            temperature=self.temperature,
            replies=self.replies,
            lengths={name: n for name, n in matrix.lengths.items() if name in self.suites},
            sources={name: s for name, s in matrix.sources.items() if name in self.suites},
        )

    def without(self, defense: str) -> Stage:
        """The stage without one of its defenses."""
        return replace(self, defenses=[one for one in self.defenses if one != defense])

    def choose_folder(self, log_dir: Path) -> Path:
        """The folder of its logs: that of the greedy stages, or one beside it."""
        return (
            log_dir
            if self.temperature == 0 or not self.name
            else log_dir.with_name(f"{log_dir.name}-{self.name}")
        )


def _standard(limit: int, adaptive: int) -> tuple[Stage, ...]:
    return (
        Stage("core", PAIR, CORE, limit),
        Stage("beginnings", PAIR, BEGINNINGS, limit),
        Stage("wordings", PAIR, WORDINGS, limit),
        Stage("languages", PAIR, ("languages", "languages_prefill", "languages_mixed"), 3 * limit),
        Stage("code", PAIR, ("code", "code_begun"), limit),
        Stage("adaptive", PAIR, ("high_match", "suffix_search"), adaptive),
        Stage("sampling", PAIR, ("direct", "prefill_20"), adaptive, temperature=1.0, replies=5),
        Stage("rivals", RIVALS, CORE, limit),
        Stage("baselines", BASELINES, CORE, limit),
        Stage(
            "usefulness",
            PAIR,
            (
                *("over_refusal", "ordinary", "ordinary_languages", "arithmetic"),
                *("human_eval", "instructions", "constraints"),
            ),
            limit,
        ),
    )


PROFILES: Mapping[str, Sequence[Stage]] = {
    "quick": (Stage("quick", PAIR, ("direct", "prefill_20", "nested_fiction", "ordinary"), 8),),
    "standard": _standard(32, 12),
    "full": _standard(100, 50),
}
"""Stages of each profile. On two cores ``quick`` takes less than ten minutes, and a stage of
``standard`` at most two hours, after the stages before it, whose runs are not repeated."""


def find_stages(profile: str, stages: Sequence[str] = ()) -> list[Stage]:
    """The stages of a profile, or those of them that are named.

    Raises:
        SafeDraftError: there is no such profile, or it has no such stage.
    """
    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    known = {stage.name: stage for stage in PROFILES[profile]}
    for name in stages:
        if name not in known:
            raise SafeDraftError(
                f"--stage {name}: the profile {profile} has the stages {', '.join(known)}"
            )
    return [known[name] for name in stages or known]
