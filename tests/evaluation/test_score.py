"""Finished logs judged again: the scores are new, the rest is as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.scorer import Score
from logs import log, sample, save
from typer.testing import CliRunner

from safedraft.cli import app
from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.logs import read_logs


def judged(folder: Path, *more: str, judge: str = "phrases") -> None:
    result = CliRunner().invoke(app, ["score", str(folder), "--judge", judge, *more])
    if result.exception:
        raise result.exception


def direct() -> EvalLog:
    left_out = sample("c", refused=Score.unscored(explanation="no answer is known"))
    left_out.metadata["left_out"] = "no answer is known"
    return log(
        "direct", "ssd",
        [sample("a", "I can't help.", refused=0), sample("b", "Sure.", harmful=1), left_out],
        metadata={"judges": ["classifier"]},
    )  # fmt: skip


def test_scores_are_replaced_and_what_was_left_out_stays_unscored(tmp_path: Path) -> None:
    folder = save(tmp_path / "logs", direct())
    judged(folder)
    (run,) = read_logs([folder]).runs
    rows = run.rows
    assert run.judges == ["phrases"]
    assert [row.refused for row in rows] == [True, False, None]
    assert rows[2].unscored == "no answer is known"
    (file,) = folder.iterdir()
    log = read_eval_log(str(file))
    assert [list(sample.scores or {}) for sample in log.samples or []] == [["refused"]] * 3
    assert log.results is not None
    assert (log.results.scores[0].scored_samples, log.results.scores[0].unscored_samples) == (2, 1)


def test_judged_into_another_folder_the_logs_stay_as_they_were(tmp_path: Path) -> None:
    folder = save(
        tmp_path / "logs", direct(), log("arithmetic", "ssd", [sample("1+1", "2", correct=1)])
    )
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    judged(folder, "--output", str(tmp_path / "again"))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    again = {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()}
    assert again.keys() == before.keys()
    assert [name for name in before if again[name] == before[name]] == [
        name for name in before if "arithmetic" in name
    ]


def test_logs_of_a_calibration_are_judged_too(tmp_path: Path) -> None:
    one = log("direct", "ssd", [sample("a", "No.", harmful=1)], metadata={"split": "calibration"})
    folder = save(tmp_path / "logs", one)
    judged(folder)
    (run,) = read_logs([folder], "calibration").runs
    assert run.rows[0].refused is False


def test_what_cannot_be_judged_is_an_error(tmp_path: Path) -> None:
    folder = save(tmp_path / "logs", log("direct", "ssd", [sample("a")], status="started"))
    with pytest.raises(SafeDraftError, match="status is 'started'"):
        judged(folder)
    with pytest.raises(SafeDraftError, match="no judge is called 'oracle'"):
        judged(folder, "--judge", "oracle")
    with pytest.raises(SafeDraftError, match="the judge phrases is given twice"):
        judged(folder, "--judge", "phrases")
    with pytest.raises(SafeDraftError, match="endpoint: missing a required argument: 'url'"):
        judged(folder, "--judge", "endpoint:model=m")
    with pytest.raises(SafeDraftError, match=r"phrases: .*'words'.* takes none"):
        judged(folder, judge="phrases:words=many")
