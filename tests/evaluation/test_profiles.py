"""Profiles: their suites and defenses exist, and stages say what their numbers can show."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from safedraft.cli import app
from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.matrix import Matrix
from safedraft.evaluation.profiles import PROFILES, Stage, find_stages
from safedraft.evaluation.suites import NEW_TOKENS, Suite, find_suite

STAGES = [stage for stages in PROFILES.values() for stage in stages]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: f"{stage.name}-{stage.limit}")
def test_every_stage_can_be_planned(stage: Stage) -> None:
    for suite in stage.suites:
        find_suite(suite)
    matrix = stage.plan(Matrix(lengths={"direct": 9, "nowhere": 9}))
    assert len(matrix.build_models()) == len(stage.defenses)
    assert (matrix.limit, matrix.replies) == (stage.limit, stage.replies)
    assert "nowhere" not in matrix.lengths


def count_replies(stage: Stage, suite: Suite) -> int:
    """Replies to the requests of a suite and to their controls, by all defenses of a stage."""
    return stage.limit * (1 + bool(suite.controls)) * len(stage.defenses) * stage.replies


def test_quick_decodes_few_and_short_replies() -> None:
    (stage,) = PROFILES["quick"]
    suites = [find_suite(name) for name in stage.suites]
    replies = [count_replies(stage, suite) for suite in suites]
    assert sum(replies) == 168
    lengths = [suite.max_new_tokens or NEW_TOKENS for suite in suites]
    assert sum(map(int.__mul__, replies, lengths)) == 8064


def test_every_attack_is_in_the_standard_profile_or_is_a_length_of_one_that_is() -> None:
    from safedraft.evaluation.suites import SUITES

    planned = {name for stage in PROFILES["standard"] for name in stage.suites}
    families = {find_suite(name).family for name in planned}
    assert {suite.family for suite in SUITES.values()} <= families


def test_a_stage_says_what_its_number_of_requests_can_show() -> None:
    stage = Stage("attacks", ("ssd",), ("direct",), 32)
    assert stage.resolution == (
        "n = 32 a suite: 0% means at most 11%, and about 50% means 34% to 66%"
    )


def test_sampled_stages_have_folders_of_their_own() -> None:
    folders = {stage.name: stage.choose_folder(Path("logs")) for stage in find_stages("standard")}
    assert folders.pop("sampling") == Path("logs-sampling")
    assert set(folders.values()) == {Path("logs")}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SafeDraftError, match="no profile is called 'slow'; known are quick"):
        find_stages("slow")
    with pytest.raises(SafeDraftError, match="--stage night: the profile quick has the stages"):
        find_stages("quick", ["night"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--profile", "quick", "--limit", "9"], "the profile quick sets --limit"),
        (["--profile", "quick", "--suite", "direct"], "the profile quick sets --suite"),
        (["--stage", "attacks"], "--stage is a part of a --profile"),
    ],
)
def test_what_a_profile_sets_is_not_given_twice(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["eval", *options])
    assert isinstance(result.exception, SafeDraftError)
    assert message in str(result.exception)
