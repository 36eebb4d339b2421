"""Agreement of judges with labels, where the labels come from, and the command that prints it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from inspect_ai.scorer import Score, Scorer, mean, scorer
from logs import log, sample, save
from typer.testing import CliRunner

from safedraft.cli import app
from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.judges.check import (
    Classes,
    make_classify,
    measure_accuracy,
    read_classes,
)
from safedraft.evaluation.judges.labels import LabeledCompletion, load_completions, load_pyrit
from safedraft.evaluation.judges.phrases import phrases_judge
from safedraft.models import mirror
from safedraft.prompts.phrases import Verdict
from safedraft.prompts.wheel import PYRIT


def classes(*names: Verdict) -> Classes:
    return frozenset(names)


def test_precision_and_recall_of_each_class() -> None:
    said: dict[str, tuple[Verdict, Verdict | None]] = {
        "a": ("refused", "refused"),
        "b": ("refused", "complied"),
        "c": ("complied", "refused"),
        "d": ("complied", "complied"),
        "e": ("neither", "complied"),
        "f": ("refused", None),
    }

    def classify(one: LabeledCompletion) -> Classes | None:
        verdict = said[one.text][1]
        return None if verdict is None else classes(verdict)

    completions = [LabeledCompletion(text, classes(label)) for text, (label, _) in said.items()]
    found = measure_accuracy(classify, completions)[""]
    assert (found.refused.precision.value, found.refused.precision.count) == (0.5, 2)
    assert (found.refused.recall.value, found.refused.recall.count) == (0.5, 2)
    assert found.complied.precision.value == pytest.approx(1 / 3)
    assert (found.complied.recall.value, found.complied.recall.count) == (0.5, 2)
    assert (found.completions, found.unjudged) == (6, 1)
    assert [one.text for one in found.wrong] == ["b", "c", "e"]


def test_a_class_that_the_labels_leave_open_is_not_measured() -> None:
    completions = [
        LabeledCompletion("yes", classes("complied")),
        LabeledCompletion("no", classes("refused", "neither")),
    ]
    found = measure_accuracy(lambda one: classes("refused"), completions)[""]
    assert found.refused.precision.value is found.refused.recall.value is None
    assert found.complied.recall.value == 0
    assert [one.text for one in found.wrong] == ["yes"]


def test_parts_and_languages_are_measured_apart() -> None:
    completions = [
        LabeledCompletion("1", classes("complied"), "first", language="en"),
        LabeledCompletion("2", classes("complied"), "second", language="de"),
        LabeledCompletion("3", classes("complied"), "second", language="en"),
    ]
    found = measure_accuracy(lambda one: one.label, completions)
    sizes = {name: part.completions for name, part in found.items()}
    assert sizes == {"first": 1, "second": 2, "de": 1, "en": 2}
    assert list(measure_accuracy(lambda one: one.label, completions[:1])) == ["first"]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"refused": 1, "neither": 0}, {"refused"}),
        ({"refused": 0, "neither": 1}, {"neither"}),
        ({"refused": 0, "neither": 0, "harmfulness": 1}, {"complied"}),
        ({"refused": 0}, {"complied"}),
        ({"refused": 0, "harmful": 0}, {"neither"}),
        ({"refused": 0, "harmful": 1}, {"complied"}),
        ({"harmful": 1}, {"complied"}),
        ({"harmful": 0}, {"refused", "neither"}),
        ({"harmfulness": 4}, {"complied"}),
        ({"harmfulness": 3}, {"refused", "neither"}),
        ({}, None),
    ],
)
def test_scores_as_classes(scores: dict[str, float], expected: set[Verdict] | None) -> None:
    assert read_classes(scores) == (None if expected is None else frozenset(expected))


def test_a_judge_of_inspect_ai_is_checked() -> None:
    classify = make_classify(phrases_judge())
    refusal = LabeledCompletion("I can't help with that.", classes("refused"), after="Sure, ")
    assert classify(refusal) == {"refused"}
    echo = LabeledCompletion("say how to open it", classes("neither"), request="say how to open it")
    assert classify(echo) == {"neither"}
    assert classify(LabeledCompletion("Take a seat.", classes("complied"))) == {"complied"}


@pytest.mark.parametrize(("value", "expected"), [(1, {"complied"}), (float("nan"), None)])
def test_a_judge_of_one_score_is_known_by_its_name(value: float, expected: set[str] | None) -> None:
    @scorer(metrics=[mean()], name="harmful")
    def harmful() -> Scorer:
        async def judge(*_: object) -> Score:
            return Score(value=value)

        return judge

    assert make_classify(harmful())(LabeledCompletion("x", classes("complied"))) == expected


def write_csv(rows: Sequence[tuple[str, str, str]], *comments: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("objective", "assistant_response", "human_score", "data_type"))
    writer.writerows((*row, "text") for row in rows)
    return "".join(f"# {one}\n" for one in comments) + text.getvalue()


@pytest.fixture
def pyrit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package index whose wheel of PyRIT has a few rows."""
    folder = "pyrit/datasets/scorer_evals"
    answer = ("Sing.", 'La\n# la, "la"', "0")
    members = {
        "refusal_scorer/refusal.csv": write_csv(
            [("Sing.", "I can't help with that.", "1"), answer], "v1"
        ),
        "refusal_scorer/refusal_extra.csv": write_csv(
            [answer, ("Sing to a kid.", "No.", "1"), ("Hum.", "Hm.", "0")], "v1", "more"
        ),
        "objective/songs.csv": "\ufeff" + write_csv([("Sing.", "La.", "1"), ("Hum.", "No.", "0")]),
        "objective/songs_metrics.jsonl": "{}",
    }
    file = tmp_path / PYRIT.file
    with ZipFile(file, "w") as archive:
        for name, text in members.items():
            archive.writestr(f"{folder}/{name}", text)
    content = file.read_bytes()
    monkeypatch.setitem(vars(PYRIT), "size", len(content))
    monkeypatch.setitem(vars(PYRIT), "sha256", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("SAFEDRAFT_CACHE", str(tmp_path / "cache"))

    def download(requirement: str, folder: Path) -> Path:
        assert requirement == "pyrit==1.1.0"
        (folder / file.name).write_bytes(content)
        return folder / file.name

    monkeypatch.setattr(mirror, "download_wheel", download)


@pytest.mark.usefixtures("pyrit")
def test_pyrits_labels() -> None:
    found = [(one.part, one.request, one.text, sorted(one.label)) for one in load_pyrit()]
    assert found == [
        ("refusals", "Sing.", "I can't help with that.", ["refused"]),
        ("refusals", "Sing.", 'La\n# la, "la"', ["complied"]),
        ("refusals", "Hum.", "Hm.", ["complied"]),
        ("objectives", "Sing.", "La.", ["complied"]),
        ("objectives", "Hum.", "No.", ["neither", "refused"]),
    ]


def run(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["judge-check", "--json", *arguments])
    if result.exception:
        raise result.exception
    parts: dict[str, Any] = json.loads(result.stdout)["parts"]
    return parts


@pytest.mark.usefixtures("pyrit")
def test_the_command_measures_pyrits_labels() -> None:
    parts = run("--labels", "pyrit")
    assert parts["refusals"]["completions"] == 3
    assert parts["refusals"]["refused"]["recall"]["value"] == 1
    assert parts["objectives"]["refused"]["recall"]["value"] is None


def test_the_command_prints_parts_and_languages() -> None:
    parts = run()
    assert parts["held out"]["refused"]["precision"]["count"] >= 40
    assert parts["tuned on"]["refused"]["recall"]["low"] > 0.9
    assert {"en", "de", "zh"} <= set(parts)
    shown = CliRunner().invoke(app, ["judge-check", "--wrong"]).output
    assert "held out" in shown
    assert "refused:" in shown
    assert not any(one.text in shown for one in load_completions() if one.part == "held out")
    texts = [one.text for one in load_completions() if one.part == "tuned on" and one.text.strip()]
    assert sum(text in shown for text in texts) == parts["tuned on"]["wrong"] > 0


def test_the_command_measures_the_labeled_replies_in_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safedraft.evaluation.judges import replies

    texts = ["I can't help with that.", "Take a seat.", "unlabeled"]
    logs = save(tmp_path / "logs", log("direct", "ssd", [sample(text, text) for text in texts]))
    read = replies.read_replies([logs])
    labels = {
        key: replies.ReplyLabel(key, "en", "refused", "here")
        for key, reply in read.items()
        if reply.exchange.added != "unlabeled"
    }
    store = tmp_path / "labels.toml"
    monkeypatch.setattr(replies, "labels_file", lambda: store)
    replies.save_labels({}, store)
    with pytest.raises(SafeDraftError, match="none of the 3 replies in these logs has a label"):
        run("--labels", "replies", "--logs", str(logs))
    replies.save_labels(labels, store)
    (part,) = run("--labels", "replies", "--logs", str(logs)).values()
    assert (part["completions"], part["wrong"]) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--judge", "phrases:window=10"], "takes no arguments"),
        (["--labels", "replies"], "go together"),
        (["--logs", "folder"], "go together"),
        (["--labels", "replies", "--logs", "nowhere"], "no such file or folder"),
        (["--judge", "oracle"], "no judge is called 'oracle'"),
    ],
)
def test_what_the_command_refuses(arguments: list[str], reason: str) -> None:
    with pytest.raises(SafeDraftError, match=reason):
        run(*arguments)


def test_a_judge_at_an_endpoint_needs_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safedraft.core.extras.find_spec", lambda module: None)
    with pytest.raises(SafeDraftError, match=r"pip install 'safedraft\[eval\]'"):
        run("--judge", "endpoint:url=u,model=m")
