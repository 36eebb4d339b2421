"""``safedraft train-draft`` as a user meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_cli import error_of, models  # noqa: F401

from safedraft.core.errors import SafeDraftError
from safedraft.models.probe_file import read_probe_file
from safedraft.models.registry import pairs
from safedraft.training import risk
from safedraft.training.checks import Checks
from safedraft.training.train import CHECKPOINT


@pytest.fixture
def prompts(tmp_path):
    for name in ("harmful", "ordinary"):
        (tmp_path / name).with_suffix(".txt").write_text(
            "\n".join(f"{name} thing number {n}" for n in range(30))
        )
    return [
        *("--harmful", str(tmp_path / "harmful.txt"), "--ordinary", str(tmp_path / "ordinary.txt")),
        *("--set", "answer_tokens=4", "--set", "beginning_tokens=4", "--set", "dressed=0"),
    ]


def test_a_dry_run_says_what_would_be_done(run, models, prompts, tmp_path):  # noqa: F811
    out = tmp_path / "adapter"
    code, said, _ = run("train-draft", *models, *prompts, "--output", str(out), "--dry-run")
    assert code == 0
    assert not out.exists()
    rows = {line.rsplit(maxsplit=2)[0]: line.split()[-2:] for line in said.splitlines()[1:-2]}
    harmful, harmless = (
        sum(int(rows[name][at]) for name in rows if "plain" in name) for at in (0, 1)
    )
    assert harmful > 5
    assert harmless > 5
    assert rows["from harmful"] == [str(harmful), "0"]
    assert f"at most {4 * (harmful + harmless)} tokens" in said
    assert "take about 2.2 hours for each billion parameters of the draft, 7.0 with" in said
    _, said, _ = run(
        *("train-draft", *models, *prompts, "--output", str(out), "--dry-run", "--epochs", "1")
    )
    assert "hours" not in said  # the steps of an epoch follow from what is drawn


def exists(out: Path) -> list[str]:
    out.mkdir()
    return []


def unfinished(out: Path) -> list[str]:
    (out.parent / "adapter.unfinished").mkdir()
    (out.parent / "adapter.unfinished" / CHECKPOINT).touch()
    return []


def too_few(out: Path) -> list[str]:
    (out.parent / "few.txt").write_text("one harmful thing")
    return ["--harmful", str(out.parent / "few.txt")]


def other_rank(out: Path) -> list[str]:
    return ["--start-from", "qwen2.5-coder", "--rank", "3"]


@pytest.mark.parametrize("options", [["--dry-run"], []])
@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (exists, "exists: choose another --output"),
        (unfinished, "holds an unfinished run: resume it with --resume, or delete it"),
        (lambda out: ["--resume"], "there is no unfinished run"),
        (lambda out: ["--output", str(out.parent / "file" / "x")], "cannot be created: Not a dir"),
        (too_few, "there are no harmful prompts for calibration: give files with more"),
        (other_rank, "the adapter in .* has rank 16: give --rank 16"),
        (lambda out: ["--start-from", "nothing"], "neither a folder nor a hub id"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses_before_it_fetches_a_model(
    run,
    tmp_path,
    options,
    prepare,
    message,
):
    (tmp_path / "file").touch()
    out = tmp_path / "adapter"
    absent = ("--target", "no/target", "--draft", "no/draft")  # neither is fetched
    own = prepare(out)
    output = [] if "--output" in own else ["--output", str(out)]
    assert re.search(message, error_of(run("train-draft", *absent, *output, *own, *options)))


def test_a_file_is_no_folder_of_a_probe(run, tmp_path):
    (tmp_path / "file").touch()
    command = ("train-ada-probe", "--target", "no/target", "--draft", "no/draft", "--no-adapter")
    assert "cannot be created" in error_of(run(*command, "--output", str(tmp_path / "file")))


@pytest.mark.slow
def test_it_trains_and_says_where(run, models, prompts, tmp_path):  # noqa: F811
    out = tmp_path / "adapter"
    code, said, stderr = run(
        *("train-draft", *models, *prompts, "--output", str(out), "--steps", "2", "--rank", "2"),
        *("--no-risk", "--register", "own"),
    )
    assert code == 0
    assert said == f"{out}\n"
    assert "training 2/2" in stderr
    shown = " ".join(stderr.split())
    assert "harmful requests refused, 20 tokens prefilled" in shown
    assert "Not fit for use: it refuses" in shown
    for command in ("train-draft --target", "generate --target"):  # no word of serving it
        assert f"safedraft {command}" in shown
    assert "own is not registered, since its draft is not fit for use." in shown
    assert "own" not in pairs()
    assert f"--start-from {out} --output {out}-2 --register own" in shown
    assert "safedraft serve" not in shown
    card = (out / "README.md").read_text()
    assert "**Not fit for use**: it refuses" in card
    assert "safedraft train-draft --target" in card
    assert "| answer_tokens | 4 |" in card
    code, said, _ = run(
        "generate", *models, "--adapter", str(out), "--max-new-tokens", "2", "--json", "Hi"
    )
    assert code == 0
    assert json.loads(said)["statistics"]["risk"] is None


@pytest.mark.slow
def test_a_fit_draft_is_registered(run, models, prompts, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(Checks, "problems", ())
    monkeypatch.chdir(tmp_path)
    options = ("--output", "adapter", "--steps", "1", "--rank", "2", "--no-risk")
    code, _, stderr = run("train-draft", *models, *prompts, *options, "--register", "own")
    assert code == 0
    shown = " ".join(stderr.split())
    for command in ("generate --pair own --compare", "eval --pair own", "serve own"):
        assert f"safedraft {command}" in shown
    registered = pairs()["own"]
    assert registered.adapter == str(tmp_path / "adapter")
    assert ["--target", registered.target, "--draft", registered.draft] == models
    assert run("generate", "--pair", "own", "--max-new-tokens", "1", "Hi")[0] == 0


@pytest.mark.slow
def test_the_probe_lies_beside_the_adapter_and_is_used(
    run,
    models,  # noqa: F811
    prompts,
    tmp_path,
    monkeypatch,
):
    out = tmp_path / "adapter"
    options = ("--output", str(out), "--steps", "1", "--rank", "2", "--no-risk")
    assert run("train-draft", *models, *prompts, *options)[0] == 0
    own = (*models, "--adapter", str(out))
    few = ("--set", "requests=60", "--set", "false_alarms=0.1")
    beside = ("--harmful", "own", *prompts[:2])
    code, said, stderr = run("train-risk", *own, *few, *beside)
    assert code == 0, stderr
    assert said == f"{out / 'risk.safetensors'}\n"
    assert "states of the training data" in stderr
    assert "harmful" in stderr
    assert "trained without" in stderr
    card = (out / "README.md").read_text()
    assert "| harmful | " in card
    assert "| the main list, in English | " in card
    assert re.search(r"\n\| harmful \| \d+ of \d+ \| \d+ \| none \|  \|\n", card)
    generate = ("generate", *own, "--max-new-tokens", "2", "--json", "Hi")
    reply = json.loads(run(*generate)[1])
    assert 0 < reply["statistics"]["risk"] < 1
    assert all(token["signal"] == reply["statistics"]["risk"] for token in reply["trace"])

    assert run("train-risk", *own, *few, "--set", "reads_text=false")[0] == 0
    probes = read_probe_file(out / "risk.safetensors")
    assert [probe.reads_text for probe in (probes.draft, probes.both) if probe] == [False, False]
    before, reply = reply, json.loads(run(*generate)[1])
    assert 0 < reply["statistics"]["risk"] < 1
    assert reply["statistics"]["risk"] != before["statistics"]["risk"]

    def fail(*_, **__):
        assert (out / "risk.safetensors").exists()  # for whoever decodes at the same time
        raise SafeDraftError("no probe today")

    monkeypatch.setattr(risk, "learn_risk", fail)
    code, _, stderr = run("train-risk", *own, *few)
    assert (code, stderr.splitlines()[-1]) == (2, "error: no probe today")
    assert json.loads(run(*generate)[1])["statistics"]["risk"] == reply["statistics"]["risk"]
    weights = out / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert "was trained with another adapter" in error_of(run(*generate))


@pytest.mark.slow
def test_a_probe_of_the_target_is_trained_and_used(run, models, tmp_path):  # noqa: F811
    out = tmp_path / "probe"
    few = ("--set", "requests=12", "--set", "dressed=0", "--set", "reply_tokens=6")
    options = ("--no-adapter", "--output", str(out), *few, "--set", "check_interval=3")
    code, said, stderr = run("train-ada-probe", *models, *options)
    assert code == 0, stderr
    assert said == f"{out / 'target_risk.safetensors'}\n"
    assert "6 tokens" in stderr
    logs = ("--suite", "ordinary", "--limit", "1", "--max-new-tokens", "4", "--log-dir")
    defense = ("--no-adapter", "--defense", f"ada_probe:probe={out},check_interval=3")
    code, _, stderr = run("eval", *models, *defense, *logs, str(tmp_path / "logs"))
    assert code == 0, stderr
    other = run("eval", *models, "--no-adapter", "--defense", "ada_probe", *logs, str(tmp_path))
    assert "ada_probe:probe=FOLDER" in error_of(other)


def test_a_probe_needs_an_adapter_in_a_folder(run, models):  # noqa: F811
    outcome = run("train-risk", *models)
    assert "belongs to an adapter: name one with --adapter" in error_of(outcome)
    outcome = run("train-risk", *models, "--adapter", "owner/name")
    assert "download it to a folder" in error_of(outcome)
    assert "comes with SafeDraft, and so does its probe: copy" in error_of(run("train-risk"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "2", "--epochs", "1"], "--steps or --epochs, not both"),
        (["--set", "steps=2", "--epochs", "1"], "--steps or --epochs, not both"),
        (["--rank", "2", "--set", "rank=4"], "--set rank: is given as an option too"),
        (["--steps", "0"], "steps"),
        (["--set", "stepz=3"], "write NAME=VALUE with one of"),
        (["--set", "clip=-1"], "clip"),
        (["--harmful", "gone.txt"], "gone.txt' is neither a file nor"),
        (["--harmful", "gone"], "neither a file nor one of"),
        (["--resume"], "no unfinished run"),
        (["--register", "qwen2.5-coder"], "there is a pair 'qwen2.5-coder' already"),
        (["--register", "a/b", "--dry-run"], "cannot be the name of a pair's file"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(run, models, tmp_path, options, message):  # noqa: F811
    outcome = run("train-draft", *models, "--output", str(tmp_path / "adapter"), *options)
    assert message in error_of(outcome)
    assert not (tmp_path / "adapter").exists()


def test_a_pair_that_is_not_there_is_named(run, tmp_path):
    outcome = run("train-draft", "--pair", "nobody", "--output", str(tmp_path / "adapter"))
    assert "no pair is called 'nobody'" in error_of(outcome)
