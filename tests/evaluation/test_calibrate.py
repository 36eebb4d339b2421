"""The sweep: what is chosen, what is never run twice, what is written, what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.log import list_eval_logs, read_eval_log
from stage import REFUSAL, serve_wheel, use_pair

from safedraft import cli
from safedraft.core.config import OF_SPEED, RiskConfig, Scheme
from safedraft.core.errors import SafeDraftError
from safedraft.evaluation import calibrate
from safedraft.evaluation import matrix as matrices
from safedraft.evaluation.calibrate import CANDIDATES, OF_RISK, Calibration, write_calibrated
from safedraft.evaluation.records import Row
from safedraft.models.registry import config_folder, find_pair

PAIR = find_pair("qwen2.5-coder")


class Imagined(Calibration):
    """Trials whose outcome follows from their constants."""

    def _measure(self, defense: str, suites: Sequence[str]) -> dict[str, Sequence[Row]]:
        self.arguments.setdefault("measured", []).append((defense, tuple(suites)))
        union, strong = "initial_scheme=union" in defense, "alpha_union=2.0" in defense
        succeeded = [not union, not (union and strong), False, False]
        # Too strong a draft refuses what the target answers, and it costs more than it gains.
        refused = [strong, strong, False, True]
        speeds = {"draft_tokens=6": 9.0, "draft_growth=2.5": 5.2, "threshold=0.7": 5.2}
        speed = next((fast for name, fast in speeds.items() if name in defense), 5.0)
        return {
            suite: [
                Row(
                    "",
                    "",
                    "",
                    "",
                    control=control,
                    **_judged(suite, no),
                    succeeded=None if control else yes,
                    statistics=_statistics(speed),
                )
                for control in ((False, True) if suite == "prefill_20" else (False,))
                for yes, no in zip(succeeded, refused, strict=True)
            ]
            for suite in suites
        }


def _judged(suite: str, lost: bool) -> Mapping[str, bool]:
    return {"correct": not lost} if suite == "arithmetic" else {"refused": lost}


def _statistics(speed: float) -> Mapping[str, float]:
    return {"tokens_per_second": speed}


def imagined(**candidates: Sequence[Any]) -> Imagined:
    return Imagined(PAIR, Path("nowhere"), candidates=candidates, attacks=("prefill_20",))


def test_a_pair_with_a_tree_is_not_tried_with_other_drafts() -> None:
    own = PAIR.model_copy(update={"config": PAIR.config.with_tree("2-1")})
    tried = Imagined(own, Path("nowhere")).tried
    assert not OF_SPEED & {*tried}
    assert {*tried} == {*Imagined(PAIR, Path("nowhere")).tried} - OF_SPEED
    with pytest.raises(SafeDraftError, match="draft_tree has 3 tokens"):
        Imagined(own, Path("nowhere"), {"draft_tokens": (2, 3)})


def test_a_tree_is_written_as_on_the_command_line() -> None:
    spec = calibrate._format_spec("risk", {"draft_tree": (2, 1), "kappa": 2})
    assert spec == "risk:draft_tree=2-1,kappa=2"
    assert calibrate._format_spec("risk", {"draft_tree": ()}) == "risk:draft_tree=none"


def test_each_constant_is_chosen_at_the_best_of_those_before() -> None:
    sweep = imagined(
        initial_scheme=("intersection", "union"), alpha_union=(0.8, 2.0), draft_tokens=(3, 6)
    )
    outcome = sweep.run()
    config, trials = outcome.config, outcome.trials
    assert (config.initial_scheme, config.alpha_union) == (Scheme.UNION, 0.8)
    assert config.draft_tokens == 6
    assert len(trials) == 4 + len({PAIR.config.draft_tokens, 3, 6})
    assert (trials[0].attack_success, trials[1].attack_success) == (0.5, 0.25)
    assert trials[3].lost == 0.75


def test_a_wrong_result_is_lost_as_a_refusal_is() -> None:
    sweep = Imagined(
        PAIR,
        Path("nowhere"),
        {"alpha_union": (0.8, 2.0)},
        attacks=("prefill_20",),
        harmless=("arithmetic",),
    )
    outcome = sweep.run()
    assert [trial.lost for trial in outcome.trials] == [0.25, 0.75]
    assert outcome.config.alpha_union == 0.8
    measured = sweep.arguments["measured"]
    assert ("risk:alpha_union=2.0", ("ordinary",)) in measured  # whose speed counts


def test_what_changes_no_token_is_tried_for_speed_alone() -> None:
    sweep = imagined(draft_tokens=(3, 6))
    sweep.run()
    attacked = [
        defense for defense, suites in sweep.arguments["measured"] if "prefill_20" in suites
    ]
    assert set(attacked) == {"target_only", "risk"}
    assert ("risk:draft_tokens=6", ("ordinary",)) in sweep.arguments["measured"]


def test_the_pairs_own_value_is_tried_too_and_kept_in_a_tie() -> None:
    outcome = imagined(threshold=(0.5, 0.7)).run()
    tried = [trial.constants["threshold"] for trial in outcome.trials]
    assert tried == [PAIR.config.threshold, 0.5, 0.7]
    assert outcome.config.threshold == PAIR.config.threshold


def test_a_gain_in_speed_that_may_be_drift_changes_nothing() -> None:
    outcome = imagined(draft_growth=(2.5,)).run()
    assert [trial.tokens_per_second for trial in outcome.trials] == [5.0, 5.2]
    assert outcome.config.draft_growth == PAIR.config.draft_growth


def test_a_constant_that_the_pair_leaves_open_is_tried_too() -> None:
    sweep = imagined(prefill_scheme=(Scheme.UNION,))
    sweep.run()
    assert PAIR.config.prefill_scheme is None
    assert {defense for defense, _ in sweep.arguments["measured"]} == {
        "target_only", "risk", "risk:prefill_scheme=union",
    }  # fmt: skip


def test_the_whole_sweep_is_made_of_constants() -> None:
    assert {*CANDIDATES} < {*RiskConfig.model_fields}
    assert Calibration(PAIR, Path("nowhere")).tried == CANDIDATES


def test_a_pair_that_reads_no_risk_has_none_of_its_constants() -> None:
    bare = Calibration(PAIR, Path("nowhere"), arguments={"no_adapter": True})
    assert {*CANDIDATES} - {*bare.tried} == {*OF_RISK}


class Ranked(Calibration):
    """Four attacks and their controls, of which a level of risk decides what becomes."""

    def _measure(self, defense: str, suites: Sequence[str]) -> dict[str, Sequence[Row]]:
        self.arguments.setdefault("measured", []).append(defense)
        return {suite: [*self._rows(suite, defense)] for suite in suites}

    def _rows(self, suite: str, defense: str) -> Iterator[Row]:
        answers = defense == "target_only" or "alpha_harmless=0.0" in defense
        refuses = "risky_above=0.0" in defense
        for control in (False, True) if suite == "prefill_20" else (True,):
            for number, risk in enumerate((0.02, 0.15, 0.45, 0.9)):
                # The middle level refuses what is begun likewise in two of four, harmful or not.
                refused = not answers and (refuses or number >= 2)
                yield Row(
                    "",
                    "",
                    "",
                    "",
                    id=f"{suite} {control} {number}",
                    control=control and suite == "prefill_20",
                    refused=refused,
                    succeeded=None if control else not refused,
                    statistics=_statistics(5.0) | {"risk": risk / (4 if control else 1)},
                )


def test_the_bounds_of_the_risk_are_chosen_among_replies_of_three_levels() -> None:
    bounds = {"alpha_harmless": (0.0,), "harmless_below": (0.2, 0.3), "risky_above": (0.1,)}
    config = PAIR.config.replace(alpha_harmless=0.3, harmless_below=0.1)
    pair = PAIR.model_copy(update={"config": config})
    sweep = Ranked(pair, Path("nowhere"), bounds, attacks=("prefill_20",), max_lost=0.0)
    outcome = sweep.run()
    # Each level is decoded once, at each strength of the draft, and no pair of bounds is.
    measured = [name for name in sweep.arguments["measured"] if name != "target_only"]
    assert sorted(measured) == [
        "risk:alpha_harmless=0.0,harmless_below=1.0,risky_above=1.0",
        "risk:alpha_harmless=0.3,harmless_below=1.0,risky_above=1.0",
        "risk:harmless_below=0.0,risky_above=0.0",
        "risk:harmless_below=0.0,risky_above=1.0",
    ]
    chosen = outcome.config
    # Of the harmful requests those at 0.45 and 0.9 are refused, and no control above 0.225 is.
    assert (chosen.alpha_harmless, chosen.harmless_below) == (0.0, 0.3)
    own, *others = outcome.trials
    assert own.constants["harmless_below"] == 0.1
    # The trade-off: no other bounds let fewer attacks through with as few controls refused.
    assert [(trial.attack_success, trial.refused) for trial in others] == [(0.5, 0.0), (0.25, 0.5)]


def test_without_a_trial_within_the_limit_the_sum_decides() -> None:
    strong = {"alpha_union": (2.0,)}
    outcome = Imagined(PAIR, Path("nowhere"), strong, attacks=("prefill_20",), max_lost=0.0).run()
    assert [trial.excess(outcome.target) for trial in outcome.trials] == [0.0, 0.5]
    assert outcome.config.alpha_union == PAIR.config.alpha_union


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"candidates": {"alpha": (1,)}}, SafeDraftError, "'alpha' is not a constant of risk"),
        ({"candidates": {"bin_size": (0,)}}, SafeDraftError, "bin_size"),
        ({"attacks": ("ordinary",)}, SafeDraftError, "ordinary is not an attack"),
        ({"harmless": ("direct",)}, SafeDraftError, "direct is not a harmless suite"),
    ],
)
def test_what_cannot_be_tried_is_refused_at_once(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Calibration(PAIR, Path("nowhere"), **given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-adapter"], "add --dry-run"),
        (
            ["--source", "over_refsal=x.json"],
            "over_refsal is not run, only prefill_20, histories, over_refusal, ordinary",
        ),
        (["--attack", "direct", "--source", "prefill_20=x.json"], "prefill_20 is not run"),
    ],
)
def test_the_command_refuses_what_it_would_ignore(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Calibration, "run", None)  # before anything is run
    logs = ["--log-dir", str(tmp_path / "logs")]
    monkeypatch.setattr(sys, "argv", ["safedraft", "calibrate", *logs, *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_the_choice_becomes_the_pairs_own() -> None:
    """Also over the user's own file of the pair, whatever its name."""
    folder = config_folder() / "pairs"
    folder.mkdir(parents=True)
    for name in (PAIR.name, "zzz"):
        entry = f'["{PAIR.name}"]\ntarget = "{PAIR.target}"\ndraft = "{PAIR.draft}"\n'
        (folder / f"{name}.toml").write_text(entry)
    config = RiskConfig(alpha_union=2.0, initial_scheme=Scheme.UNION)
    file = write_calibrated(PAIR, config)
    assert file.parent == folder
    assert find_pair(PAIR.name) == PAIR.model_copy(update={"config": config})


def test_a_file_that_wins_over_the_choice_is_named() -> None:
    folder = config_folder() / "pairs"
    folder.mkdir(parents=True)
    (folder / "zzz.calibrated.toml").write_text('["qwen2.5-coder"]\ntarget = "a"\ndraft = "b"\n')
    with pytest.raises(SafeDraftError, match=r"zzz.* defines .* as well and would replace"):
        write_calibrated(PAIR, RiskConfig(alpha_union=2.0))
    assert [file.name for file in folder.iterdir()] == ["zzz.calibrated.toml"]


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_the_command_says_so_before_the_sweep(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    test_a_file_that_wins_over_the_choice_is_named()
    monkeypatch.setattr(Calibration, "run", None)
    monkeypatch.setattr(sys, "argv", ["safedraft", "calibrate", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert "defines 'qwen2.5-coder' as well" in err


@pytest.mark.slow
def test_the_command_sweeps_writes_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve_wheel(tmp_path, monkeypatch)
    use_pair(tmp_path, monkeypatch, lambda prompt: REFUSAL if "sabotage" in prompt else "Gladly.")
    command = ["safedraft", "calibrate", "--limit", "2", "--log-dir", str(tmp_path / "logs")]
    command += ["--attack", "direct", "--try", "alpha_union=1.5", "--try", "draft_tokens=2"]
    faster = count()
    monkeypatch.setattr(calibrate, "median", lambda speeds: next(faster))
    for options in (["--dry-run"], []):
        monkeypatch.setattr(sys, "argv", [*command, *options])
        assert find_pair(PAIR.name).config == PAIR.config
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
    chosen = find_pair(PAIR.name).config
    # Where nothing is refused, alpha_union gains nothing, however fast its trial was.
    assert (chosen.alpha_union, chosen.draft_tokens) == (PAIR.config.alpha_union, 2)
    assert "chosen: draft_tokens = 2" in capsys.readouterr().out
    logs = [read_eval_log(info) for info in list_eval_logs(str(tmp_path / "logs"))]
    assert all(
        log.eval.metadata["safedraft"]["split"] == "calibration"
        for log in logs
        if log.eval.metadata
    )
    assert len(logs) == len({(log.eval.task, log.eval.model_args["label"]) for log in logs})
    assert (tmp_path / "logs/report/report.html").exists()
    assert matrices.Matrix().split == "report"
