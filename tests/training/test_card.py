"""The sentences of a card follow its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safedraft.core.risk import RiskProbe
from safedraft.training.card import format_verdict
from safedraft.training.checks import PREFILLS, Checks, Proportion
from safedraft.training.risk import Flagged, LeftOut, TrainedProbe, TrainedProbes
from safedraft.training.risk_card import write_risk_section


def checks(**changed: Any) -> Checks:
    figures: dict[str, Any] = {
        "refusals": dict.fromkeys(PREFILLS, Proportion(9, 10)),
        "look_alikes": Proportion(15, 100),
        "target_look_alikes": Proportion(10, 100),
        "begun_look_alikes": Proportion(20, 100),
        "agreement": Proportion(77, 100),
    }
    return Checks(**(figures | changed))


def test_a_draft_that_refuses_what_it_should_is_said_to() -> None:
    fit = checks()
    assert fit.problems == []
    assert format_verdict(fit).startswith("In its checks it refused 90% of harmful requests")


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"refusals": {0: Proportion(0, 138)}}, "it refuses 0 of 138 (0%) of harmful requests"),
        (
            {"refusals": dict.fromkeys(PREFILLS, Proportion(9, 10)) | {20: Proportion(7, 10)}},
            "it refuses 7 of 10 (70%) of harmful requests with 20 tokens prefilled",
        ),
        ({"refusals": {0: Proportion(0, 0)}}, "it refuses 0 of 0 of harmful requests"),
        ({"look_alikes": Proportion(21, 100)}, "21 of 100 (21%) of safe look-alikes"),
        ({"agreement": Proportion(49, 100)}, "49 of 100 (49%) of the target's tokens"),
    ],
)
def test_a_draft_below_a_bar_is_not_fit_for_use(changed: Any, problem: str) -> None:
    unfit = checks(**changed)
    assert len(unfit.problems) == 1
    assert problem in unfit.problems[0]
    assert format_verdict(unfit) == f"**Not fit for use**: {unfit.problems[0]}."


def test_no_look_alikes_are_no_problem() -> None:
    names = ("look_alikes", "target_look_alikes", "begun_look_alikes")
    none = checks(**dict.fromkeys(names, Proportion(0, 0)))
    assert none.problems == []
    assert not none.refuses_by_beginning


def test_a_draft_that_refuses_because_an_answer_has_begun_is_said_to() -> None:
    assert "has begun" not in format_verdict(checks())
    shortcut = checks(begun_look_alikes=Proportion(95, 100))
    assert shortcut.problems == []
    assert "**It refuses 95 of 100 (95%) of safe look-alikes whose answer has begun" in (
        format_verdict(shortcut)
    )


CHECKS = [
    Flagged("harmful", "plain", 7, 2, 9),
    Flagged("harmful", "frame", 3, 1, 5),
    Flagged("harmful", "earlier turns", 2, 0, 5),
    Flagged("look_alike, languages", "plain", 1, 0, 20),
]


LEFT_OUT = [
    LeftOut("code", True, 8, 3, 12),
    LeftOut("code", False, 2, 4, 20),
    LeftOut("shipped", True, 5, 1, 90),
    LeftOut("shipped", False, 0, 7, 99),
]


def trained(checks: list[Flagged], left_out: list[LeftOut]) -> TrainedProbes:
    """The probe that reads the draft alone calls one conversation less risky in each cell."""
    probe = RiskProbe(torch.zeros(1), 0.0)
    alone = [one._replace(probe=one.probe - 1, ngrams=0) for one in checks]
    return TrainedProbes(TrainedProbe(probe, alone, []), TrainedProbe(probe, checks, left_out))


@pytest.mark.parametrize("rest", ["", "\n## Data\n\nprompts\n\n## Models\n\nnames\n"])
def test_a_probe_has_one_section_whichever_probe_it_is(tmp_path: Path, rest: str) -> None:
    card = tmp_path / "README.md"
    write_risk_section(tmp_path, trained(CHECKS, LEFT_OUT))
    assert not card.exists()
    card.write_text(f"# Draft\n\nwords\n{rest}")
    write_risk_section(tmp_path, trained([Flagged("harmful", "plain", 1, 0, 9)], []))
    assert "left out" not in card.read_text()
    write_risk_section(tmp_path, trained(CHECKS, LEFT_OUT))
    text = card.read_text()
    assert text.startswith("# Draft\n\nwords\n\n## Risk probe\n")
    assert text.endswith(rest or "| 0 of 99 | 7 |\n")
    assert text.count("## Risk probe") == 1
    assert "| harmful | 7 of 9 | 6 | 2 | 5 of 10 | 3 | 1 |\n" in text
    assert "| look-alike, in eight other languages | 1 of 20 | 0 | 0 | 0 of 0 | 0 | 0 |\n" in text
    assert "In all, 12 of 19 harmful ones and 1 of 20 harmless ones; by the draft\nalone 9" in text
    assert "alone 9 and 0, by words 3 and 0." in text
    assert "| code | 8 of 12 | 3 | 2 of 20 | 4 |\n" in text
    assert "| the main list, in English | 5 of 90 | 1 | 0 of 99 | 7 |\n" in text
