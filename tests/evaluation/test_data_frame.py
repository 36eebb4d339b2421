"""The data frame that the page on reports shows has the figures of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.pages import ROOT, read_blocks
from inspect_ai.scorer import Score
from logs import log, sample, save

from safedraft.evaluation.logs import read_logs
from safedraft.evaluation.report.figures import build_figures

(EXAMPLE,) = [
    block.text
    for block in read_blocks(ROOT / "docs/judges-and-report.md")
    if "samples_df" in block.text
]


def test_the_frame_of_the_page_has_the_figures_of_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answered, refused = {"refused": 0, "neither": 0}, {"refused": 1, "neither": 0}
    unscored = Score.unscored(reason="grader_failed", explanation="the judge was away")
    samples = [
        sample("a", refused=answered),
        sample("b", refused=refused),
        sample("c", refused={"refused": 0, "neither": 1}),
        sample("d", refused=unscored),
        *(sample(one, refused=refused, control_of="a") for one in "ab"),
        sample("c", refused=answered, control_of="c"),
    ]
    folder = save(
        tmp_path / "safedraft-logs",
        log("direct", "ssd", samples, label="ssd"),
        log("direct", "target_only", samples[:1], label="target_only"),
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(EXAMPLE, names)
    replies = names["replies"]
    assert len(replies) == 8
    attacks = replies[(replies["defense"] == "ssd") & ~replies["control"]]
    assert attacks["refused"].isna().tolist() == [False, False, False, True]
    assert attacks["tokens_per_pass"].tolist() == [2.0] * 4
    means = names["by_suite"]["refused"].mean()
    table = build_figures(read_logs([folder])).table("harmless_refused")
    assert means["direct", True, "ssd"] == pytest.approx(table.cell("direct", "ssd").value)
    assert means["direct", False, "ssd"] == pytest.approx(1 / 3)
    assert "tokens_per_pass" in capsys.readouterr().out
