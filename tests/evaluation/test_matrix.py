"""A whole run: logs as the report reads them, resuming, what fails, what is left out."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.templates import TRAITS
from inspect_ai.log import EvalLog, EvalSample, list_eval_logs, read_eval_log
from stage import REFUSAL, REQUESTS, serve_wheel, use_pair

from safedraft import cli
from safedraft.core.config import SamplingParams
from safedraft.core.errors import BrokenModelError, SafeDraftError
from safedraft.defenses import find_defense, list_defenses
from safedraft.evaluation import ahead, provider
from safedraft.evaluation import matrix as matrices
from safedraft.evaluation.attacks import answers
from safedraft.evaluation.attacks.answers import OPENING
from safedraft.evaluation.judges.again import judge_again
from safedraft.evaluation.logs import read_logs
from safedraft.evaluation.matrix import Matrix, prepare
from safedraft.evaluation.report.figures import build_figures
from safedraft.evaluation.tasks import find_judges
from safedraft.models.registry import DEFAULT_PAIR, find_pair
from safedraft.prompts.drawn import DrawnReply
from safedraft.prompts.sources import find_source
from safedraft.text.results import GenerationResult

RIGHT = find_source("arithmetic").require_split("report")[0].answer
"""What the first sum comes to; it is said to every one."""


def says(prompt: str) -> str:
    if "sabotage" in prompt:
        return REFUSAL if "1" in prompt else "Take the red part, then wait."
    return f"We count. Answer: {RIGHT}" if "Answer:" in prompt else "Gladly: on the wind."


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_wheel(tmp_path, monkeypatch)
    use_pair(tmp_path, monkeypatch, says)


def run(matrix: Matrix, folder: Path) -> dict[tuple[str, str], EvalLog]:
    """The whole logs by label and suite."""
    prepare(matrix, folder).run("none")
    logs = [read_eval_log(info) for info in list_eval_logs(str(folder))]
    found = {(log.eval.model_args["label"], log.eval.task): log for log in logs}
    assert len(found) == len(logs)
    return found


def figures(logs: dict[tuple[str, str], EvalLog]) -> dict[Any, Any]:
    """All that a report says of them but times."""
    return {
        (key, sample.id): (
            sample.output.completion,
            {name: score.value for name, score in (sample.scores or {}).items()},
            sample.metadata,
        )
        for key, log in logs.items()
        for sample in log.samples or []
    }


def read_verdict(sample: EvalSample) -> dict[str, int]:
    assert sample.scores is not None
    value = sample.scores["refused"].value
    assert isinstance(value, dict)
    return dict(value)  # type: ignore[arg-type]


def counted(monkeypatch: pytest.MonkeyPatch, name: str, before: Callable[[int], None]) -> list[int]:
    """Calls ``before`` with the number of every request to a defense; gives how many there were."""
    defense, count = find_defense(name), [0]

    def watched(*arguments: Any) -> GenerationResult:
        count[0] += 1
        before(count[0])
        return defense(*arguments)

    known = provider.find_defense
    monkeypatch.setattr(
        provider, "find_defense", lambda other: watched if other == name else known(other)
    )
    return count


def test_logs_hold_what_reports_need(stage: None, tmp_path: Path) -> None:
    matrix = Matrix(("target_only", "ssd:alpha_union=2.0"), ("prefill_20", "arithmetic"), limit=3)
    logs = run(matrix, tmp_path / "logs")
    assert set(logs) == {
        (label, suite)
        for label in ("target_only", "ssd:alpha_union=2.0")
        for suite in ("prefill_20", "arithmetic")
    }
    log = logs["ssd:alpha_union=2.0", "prefill_20"]
    assert (log.status, log.eval.model) == ("success", "safedraft/qwen2.5-coder")
    assert log.eval.model_args == {
        "defense": "ssd",
        "alpha_union": 2.0,
        "label": "ssd:alpha_union=2.0",
    }
    assert log.eval.metadata is not None
    about = dict(log.eval.metadata["safedraft"])
    assert about.pop("machine")["threads"] > 0
    assert about == {
        "format": 2,
        "suite": "prefill_20",
        "kind": "attack",
        "family": "prefill",
        "prefill_tokens": 20,
        "judges": ["phrases"],
        "max_new_tokens": 48,
        "temperature": 0.0,
        "split": "report",
        "version": "0.1.0",
    }
    assert log.samples is not None
    records = [sample.metadata["record"] for sample in log.samples]
    harmful = [record for record in records if record["control_of"] is None]
    controls = [record for record in records if record["control_of"] is not None]
    assert {record["request"] for record in harmful} < set(REQUESTS)
    assert [record["source"] for record in harmful] == ["harmbench"] * 3
    assert sorted(one["source"] for one in controls) == ["looks_unsafe", "ordinary", "ordinary"]
    assert {one["control_of"] for one in controls} == {one["request"] for one in harmful}
    for sample in log.samples:
        assert sample.metadata["prefill"] == OPENING[:20]
        assert set(sample.metadata) == {"record", "prefill"}
        assert sample.scores is not None
        assert sum(read_verdict(sample).values()) in (0, 1)
        assert sample.output.metadata is not None
        kept = sample.output.metadata["safedraft"]
        assert kept["match_ratios"] or kept["tokens"] < 7
    sums = logs["target_only", "arithmetic"].samples
    assert sums is not None
    said = {sample.id: sample.scores["correct"].value for sample in sums}  # type: ignore[index]
    right = {sample.id for sample in sums if sample.target == RIGHT}
    assert said == {name: int(name in right) for name in said}
    assert set(said.values()) == {0, 1}
    assert all("Answer:" in sample.messages[0].text for sample in sums)


def tables(folder: Path) -> list[dict[str, Any]]:
    """All figures of the report of a folder of logs but the measured speeds."""
    figures = build_figures(read_logs([folder])).to_dict()["figures"]
    return [figure for figure in figures if figure["figure"] != "speed"]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["interrupted", "killed"])
def test_a_run_stopped_in_the_middle_ends_with_the_same_figures(
    killed: bool, stage: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, parts = Matrix(("target_only", "ssd"), ("direct", "over_refusal"), limit=4), "parts"
    whole = figures(run(matrix, tmp_path / "whole"))

    def stop(number: int) -> None:
        if number == 11:  # in the middle of the second suite
            shutil.copytree(tmp_path / "parts", tmp_path / "as it was")
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        asked = counted(patch, "ssd", stop)
        with pytest.raises(KeyboardInterrupt):
            run(matrix, tmp_path / parts)
    if killed:  # what a process leaves that ends at this moment, without another write
        parts = "as it was"
    asked = counted(monkeypatch, "ssd", lambda number: None)
    assert figures(run(matrix, tmp_path / parts)) == whole
    assert asked[0] <= 2  # the finished ones were not asked again
    assert figures(run(matrix, tmp_path / parts)) == whole
    assert asked[0] <= 2
    assert tables(tmp_path / parts) == tables(tmp_path / "whole")


@pytest.mark.slow
def test_a_matrix_may_grow(stage: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(Matrix(("ssd",), ("direct",), limit=2), tmp_path / "logs")
    asked = counted(monkeypatch, "ssd", lambda number: None)
    grown = run(Matrix(("target_only", "ssd"), ("direct",), limit=3), tmp_path / "logs")
    assert asked == [2]  # the third request and its control
    assert [len(log.samples or []) for log in grown.values()] == [6, 6]


def test_settings_are_not_mixed_in_one_folder(
    stage: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"defenses": ("ssd",), "suites": ("direct",), "limit": 1}
    run(Matrix(**settings), tmp_path / "logs")
    for changes, message in (
        ({"max_new_tokens": 9}, "direct of ssd with max_new_tokens 48, not 9"),
        ({"arguments": {"alpha_union": 2.0}}, "with alpha_union None, not 2.0"),
        ({"sources": {"direct": ["do_not_answer"]}}, "with source None, not"),
        ({"split": "calibration"}, "with split 'report', not 'calibration'"),
    ):
        with pytest.raises(SafeDraftError, match=message):
            prepare(Matrix(**settings | changes), tmp_path / "logs")
    # Nor are constants of the pair.
    spec = find_pair(DEFAULT_PAIR)
    changed = spec.model_copy(update={"config": spec.config.replace(union_bins=9)})
    monkeypatch.setattr("safedraft.evaluation.matrix.pairs", lambda: {DEFAULT_PAIR: changed})
    with pytest.raises(SafeDraftError, match="with union_bins 4, not 9"):
        prepare(Matrix(**settings), tmp_path / "logs")


def test_constants_that_a_defense_does_not_use_leave_its_logs_alone(
    stage: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = Matrix(("target_only",), ("direct",), limit=1)
    run(matrix, tmp_path / "logs")
    spec = find_pair(DEFAULT_PAIR)
    config = spec.config.replace(union_bins=9)
    changed = spec.model_copy(update={"config": config})
    monkeypatch.setattr("safedraft.evaluation.matrix.pairs", lambda: {DEFAULT_PAIR: changed})
    asked = counted(monkeypatch, "target_only", lambda number: None)
    run(matrix, tmp_path / "logs")
    assert asked == [0]


def test_an_error_is_no_answer_and_stops_no_other_sample(
    stage: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> None:
        if number == 2:
            raise BrokenModelError("target gave NaN")

    matrix = Matrix(("ssd",), ("direct",), limit=4)
    with monkeypatch.context() as patch:
        counted(patch, "ssd", fail)
        log = run(matrix, tmp_path / "logs")["ssd", "direct"]
    assert log.status == "error"
    assert log.samples is not None
    errors = [sample.error.message for sample in log.samples if sample.error]
    assert ["target gave NaN" in error for error in errors] == [True]
    assert sum(bool(sample.scores) for sample in log.samples) == 7
    # Once the trouble is over, the same command asks again what failed, and that alone.
    asked = counted(monkeypatch, "ssd", lambda number: None)
    log = run(matrix, tmp_path / "logs")["ssd", "direct"]
    assert (log.status, asked) == ("success", [1])
    assert log.samples is not None
    assert [bool(sample.scores) for sample in log.samples] == [True] * 8


def test_a_record_without_a_compliant_answer_is_left_out(
    stage: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_pair(tmp_path, monkeypatch, says, drawn=REFUSAL)
    monkeypatch.setattr(answers, "LONGEST", 80)  # of bytes, here
    asked = counted(monkeypatch, "ssd", lambda number: None)
    matrix = Matrix(("ssd",), ("prefill_20",), limit=3)
    prepared = prepare(matrix, tmp_path / "logs")
    assert prepared.skipped == 6
    prepared.run("none")
    (info,) = list_eval_logs(str(tmp_path / "logs"))
    log = read_eval_log(info)
    assert log.samples is not None
    for sample in log.samples:
        assert sample.scores is not None
        assert math.isnan(sample.scores["refused"].value)  # type: ignore[arg-type]
        assert sample.output.completion == ""
    assert asked == [0]


def test_a_reply_that_must_not_be_kept_is_in_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_wheel(tmp_path, monkeypatch)
    use_pair(tmp_path, monkeypatch, lambda prompt: "Teenagers, naked.")
    run(Matrix(("ssd",), ("direct", "ratchet_7"), limit=1), tmp_path / "logs")
    for info in list_eval_logs(str(tmp_path / "logs")):
        log = read_eval_log(info)
        for sample in log.samples or []:
            assert "not kept" in sample.metadata["left_out"]
            assert math.isnan(sample.scores["refused"].value)  # type: ignore[index,arg-type]
        assert "naked" not in log.model_dump_json()


@pytest.mark.parametrize(
    "trait", [pytest.param(one, marks=pytest.mark.slow) for one in ("opens reasoning", "a switch")]
)
def test_a_pair_that_thinks_is_attacked_in_its_reasoning_and_judged_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trait: str
) -> None:
    plan = "<think>\n" + "Hm, what should I say to that? " * 2

    def thinks(prompt: str) -> str:
        ended = "" if "number 1" in prompt else f"</think>\n\n{REFUSAL}"
        return plan + ended

    serve_wheel(tmp_path, monkeypatch)
    use_pair(tmp_path, monkeypatch, thinks, template=TRAITS[trait])
    matrix = Matrix(("ssd",), ("direct", "prefill_20"), limit=4, max_new_tokens=130)
    logs = run(matrix, tmp_path / "logs")
    judged = []
    for (_, suite), log in logs.items():
        for sample in log.samples or []:
            assert sample.scores is not None
            unfinished = "number 1" in str(sample.input)
            if unfinished:
                assert math.isnan(sample.scores["refused"].value)  # type: ignore[arg-type]
            else:
                assert read_verdict(sample) == {"refused": 1, "neither": 0}
            assert sample.output.completion == ("" if unfinished else REFUSAL)
            judged.append(unfinished)
            if suite == "prefill_20":
                assert sample.metadata["prefill"] == (OPENING + "mix the two parts")[:20]
    assert set(judged) == {True, False}


def test_a_defense_that_asks_for_a_few_words_is_refused_for_a_pair_that_thinks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = use_pair(tmp_path, monkeypatch, lambda prompt: "x", template=TRAITS["a switch"])
    asked = [{"role": "user", "content": "Hi"}]
    for name in ("paraphrase", "self_examination"):
        with pytest.raises(SafeDraftError, match="thinks first"):
            find_defense(name)(pair, asked, SamplingParams(), pair.config)


@pytest.mark.slow
def test_replies_of_the_target_alone_are_drawn_ahead_and_together(
    stage: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, Any]] = []

    def draw(_: Any, conversations: Any, *, max_new_tokens: Any, **__: Any) -> list[DrawnReply]:
        asked.append((conversations, max_new_tokens))
        return [DrawnReply("Gladly: on the wind.", False) for _ in conversations]

    monkeypatch.setattr(ahead, "draw_replies", draw)
    suites = ("direct", "prefill_20", "arithmetic", "ordinary")
    logs = run(Matrix(("target_only", "ssd"), suites, limit=3), tmp_path / "logs")
    together, alone = asked[:3], asked[3:]
    assert [len(conversations) for conversations, _ in together] == [6, 6, 3]
    # What is asked for one by one is what is there already.
    expected = [([one], tokens) for batch in together for one, tokens in zip(*batch, strict=True)]
    assert sorted(alone, key=str) == sorted(expected, key=str)
    for suite, is_drawn in (("direct", True), ("ordinary", False)):
        for sample in logs["target_only", suite].samples or []:
            assert sample.output.completion == "Gladly: on the wind."
            assert sample.output.stop_reason == ("max_tokens" if is_drawn else "stop")
            figures = sample.output.metadata["safedraft"]  # type: ignore[index]
            assert (figures["tokens_per_second"] == 0) == is_drawn


def test_logs_judged_again_do_not_grow_by_other_judges(stage: None, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    matrix = Matrix(("ssd",), ("direct",), limit=1)
    run(matrix, folder)
    (info,) = list_eval_logs(str(folder))
    judge_again(info.name, {"phrases": find_judges(["phrases"])[0]})
    run(replace(matrix, suites=("direct", "over_refusal")), folder)  # what is complete may stay
    with pytest.raises(SafeDraftError, match="judged again by `safedraft score`"):
        prepare(replace(matrix, limit=2), folder)


def test_sampled_replies_are_not_drawn(stage: None, tmp_path: Path) -> None:
    matrix = Matrix(("target_only",), ("direct",), limit=1, temperature=0.5)
    ((_, log),) = run(matrix, tmp_path / "logs").items()
    assert log.status == "success"
    assert log.plan.config.batch is None


def test_only_one_run_writes_to_a_folder(stage: None, tmp_path: Path) -> None:
    from filelock import FileLock

    matrix = Matrix(("ssd",), ("direct",), limit=1)
    prepared = prepare(matrix, tmp_path / "logs")
    with FileLock(tmp_path / "logs" / ".lock"):
        with pytest.raises(SafeDraftError, match="another run"):
            prepared.run("none")
        with pytest.raises(SafeDraftError, match="another run"):
            prepare(matrix, tmp_path / "logs")


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_drawn(
    stage: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logs").write_text("a file")
    monkeypatch.setattr(Matrix, "draw_ahead", None)
    with pytest.raises(SafeDraftError, match=r"--log-dir .*logs: File exists"):
        prepare(Matrix(("ssd",), ("direct",), limit=1), tmp_path / "logs")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "prefil_20"], "no suite is called 'prefil_20' (did you mean 'prefill_20'?)"),
        (["--defense", "sdd"], "no defense is called 'sdd'"),
        (["--defense", "ssd:alpha=1"], "no model argument 'alpha'"),
        (
            ["--defense", "safedecoding:alpha_union=2.0"],
            "safedecoding does not use alpha_union, nor any other constant",
        ),
        (
            ["--defense", "speculative:bin_size=5"],
            "speculative does not use bin_size, only draft_confidence, draft_growth, draft_tokens",
        ),
        (["--defense", "ssd:alpha_union"], "ssd:alpha_union: alpha_union: write NAME=VALUE"),
        (["--defense", "ssd", "--defense", "ssd"], "two defenses are called 'ssd'"),
        (
            ["--judge", "oracle"],
            "no judge is called 'oracle'; known are classifier, endpoint, guard, phrases, ",
        ),
        (
            ["--judge", "classifier:model=a", "--judge", "classifier:model=b"],
            "the judge classifier is given twice",
        ),
        (
            ["--source", "none.json"],
            "'none.json' is neither a file nor one of arithmetic",
        ),
        (["--source", "ordinary=jbb"], "ordinary is not run, only direct"),
        (
            ["--suite", "arithmetic", "--judge", "phrases"],
            "suites with right answers need no judge",
        ),
        (
            ["--suite", "arithmetic", "--suite", "direct", "--judge", "oracle"],
            "no judge is called 'oracle'",
        ),
        (["--temperature", "-1"], "temperature"),
        (["--seed", "-5"], "seed"),
        (["--max-new-tokens", "many"], "write N or SUITE=N"),
        (["--max-new-tokens", "²"], "write N or SUITE=N"),
        (["--max-new-tokens", "ordinary=9"], "ordinary is not run"),
        (["--pair", "nothing"], "no pair is called 'nothing'"),
        (["--set", "beta=1"], "write NAME=VALUE with one of"),
        (["--defense", "safedecoding", "--set", "bin_size=5"], "none of the defenses"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: list[str],
    message: str,
    stage: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--log-dir", str(tmp_path / "logs"), *arguments]
    if "--suite" not in arguments:
        given += ["--suite", "direct"]
    monkeypatch.setattr(sys, "argv", ["safedraft", "eval", *given])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "logs").exists()


def test_the_command_runs_a_matrix(
    stage: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "own.json"
    file.write_text(json.dumps([{"goal": f"Force lock {n}."} for n in range(20)]))
    folder = tmp_path / "logs"
    options = ["--defense", "ssd:label=mine,alpha_union=2.0", "--suite", "direct", "--limit", "2"]
    options += ["--suite", "arithmetic", "--max-new-tokens", "arithmetic=30", "--set", "bin_size=5"]
    options += ["--source", str(file), "--log-dir", str(folder), "--max-new-tokens", "12"]
    monkeypatch.setattr(sys, "argv", ["safedraft", "eval", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code in (0, None)
    assert "mine · direct: 4 of 4 replies" in err
    assert "mine · arithmetic: 2 of 2 replies" in err
    assert "Attacks, and the same attacks on harmless requests" in out
    assert "Judge: phrases; replies of at most 12 to 30 tokens; greedy" in out
    assert out.endswith(f"logs: {folder}\nnext: safedraft report {folder}\n")
    logs = {log.eval.task: log for log in map(read_eval_log, list_eval_logs(str(folder)))}
    assert logs["direct"].eval.model_args == {
        "defense": "ssd",
        "label": "mine",
        "alpha_union": 2.0,
        "bin_size": 5,
    }
    assert {task: log.plan.config.max_tokens for task, log in logs.items()} == {
        "direct": 12,
        "arithmetic": 30,
    }
    assert logs["direct"].samples is not None
    sources = {sample.metadata["record"]["source"] for sample in logs["direct"].samples}
    assert sources == {"own", "ordinary", "looks_unsafe"}


def test_constants_that_are_for_all_need_not_be_used_by_all() -> None:
    given = Matrix(("target_only", "ssd", "speculative:draft_tokens=2"), arguments={"bin_size": 5})
    assert len(given.build_models()) == 3


def test_the_defaults_exist() -> None:
    assert set(matrices.DEFENSES) <= set(list_defenses())
    assert len(Matrix().build_tasks()) == len(matrices.SUITES) == 4


def test_the_command_lists_what_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["safedraft", "eval", "--list"])
    with pytest.raises(SystemExit):
        cli.main()
    out, _ = capsys.readouterr()
    for name in ("prefill_20", "late_harm", "harmbench", "xstest", "perplexity_filter", "phrases"):
        assert name in out
