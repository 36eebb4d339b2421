"""The commands of docs/guard-your-model.md, in their order, in a fresh environment."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import save_pair, save_prompts
from fresh import ROOT, Environment
from helpers.pages import read_blocks
from typer.testing import CliRunner

from safedraft.cli import app
from safedraft.models.registry import draft_candidates

FILE = ROOT / "docs/guard-your-model.md"
PAGE = FILE.read_text("utf-8")
TARGET, DRAFT = "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"

SMALL = {
    "train-draft": "--harmful harmful.txt --ordinary ordinary.txt --steps 2 --rank 2 --no-risk "
    "--set answer_tokens=4 --set beginning_tokens=4 --set dressed=0",
    "generate": "--max-new-tokens 4",
    "calibrate": "--try alpha_union=0.8 --attack direct --limit 1 --max-new-tokens 2",
    "eval": "--max-new-tokens 2",
}
"""Options that make a command short on tiny models."""


def shorten(words: Sequence[str], small: str) -> list[str]:
    """A command with options that make it short, in place of its own of the same names."""
    added, kept = shlex.split(small), [*words]
    for option, value in pairwise(added):
        if not option.startswith("--") or value.startswith("--"):
            continue
        name, has_name, _ = value.partition("=")
        for at in reversed(range(len(kept) - 1)):
            if kept[at] == option and (not has_name or kept[at + 1].partition("=")[0] == name):
                del kept[at : at + 2]
    return [*kept, *added]


def list_commands() -> list[str]:
    """Every command of the page, one a line."""
    return [line for block in read_blocks(FILE) for line in block.text.splitlines()]


def test_the_page_walks_from_an_installation_to_metrics() -> None:
    kinds = [" ".join(command.split()[:2]) for command in list_commands()]
    assert kinds[0] == "pip install"
    assert kinds[-1].startswith("curl")
    steps = ("doctor", "train-draft", "pairs", "generate", "calibrate", "eval", "report", "serve")
    assert list(dict.fromkeys(kind.split()[1] for kind in kinds[1:] if "curl" not in kind)) == [
        *steps
    ]


def find_extras() -> list[str]:
    """The extras with which the page installs SafeDraft."""
    (extras,) = re.findall(r"pip install -e '\.\[(.*)\]'", PAGE)
    return extras.split(",")


def test_the_extras_that_it_installs_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {*find_extras()} <= project["optional-dependencies"].keys()


def test_the_table_has_every_draft_that_the_doctor_proposes() -> None:
    (table,) = re.findall(r"^\| targets \|.*?\n\n", PAGE, re.DOTALL | re.MULTILINE)
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in table.strip().splitlines()[2:]
    ]
    shown = {draft: row for _, _, draft, *row in rows}
    for candidate in draft_candidates():
        license, options, verdict, adapter = shown[candidate.name]
        assert license == candidate.license
        assert verdict.startswith("should fit")
        for name in candidate.template:
            assert f"{name}=" in options
        assert adapter == "train one"
    (ready,) = (row for row in rows if row[-1] == "ready")
    assert "**fits**" in ready[-2]


def find_printed(first: str) -> str:
    """What the page says that a program prints, from its first word on."""
    (text,) = re.findall(rf"^```text\n({first} .*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return text


def list_words(text: str) -> list[str]:
    """The words of a text that may be wrapped in another way, with no figures in them."""
    return sorted(re.sub(r"\d+", "0", text).split())


def test_a_dry_run_prints_what_the_page_shows() -> None:
    (line,) = (line for line in list_commands() if "--dry-run" in line)
    done = CliRunner().invoke(app, shlex.split(line)[1:])
    assert done.stdout.split() == find_printed("conversations").split()


@pytest.mark.wheel
@pytest.mark.timeout(600)
def test_every_command_runs(fresh_environment: Environment, tmp_path: Path) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    target, draft = map(str, save_pair(tmp_path, max_position_embeddings=8192))
    save_prompts(fresh_environment.work)
    fresh_environment.install(*find_extras())

    def run(line: str) -> str:
        words = [{TARGET: target, DRAFT: draft}.get(w, w) for w in shlex.split(line, comments=True)]
        return fresh_environment.run(*shorten(words, SMALL.get(words[1], "")))

    # No published model is tiny: the doctor proposes a draft of a pair of the user's own.
    run(f"safedraft pairs add tiny --target {TARGET} --draft {DRAFT} --no-adapter")
    said = {}
    for line in list_commands():
        program, command, *_ = line.split()
        if program == "safedraft" and command != "serve":
            said.setdefault(command, []).append(run(line))
        if "--register my-model" in line:
            assert "my-model is not registered, since its draft is not fit for use" in (
                " ".join(said[command][-1].split())
            )  # no training makes these models refuse
            ended = said[command][-1].replace(target, "target").replace(draft, "draft")
            ended = f"what {ended.partition('what ')[2]} my-draft"
            assert list_words(ended) == list_words(find_printed("what"))
            models = f"--target {TARGET} --draft {DRAFT} --adapter my-draft"
            run(f"safedraft pairs add my-model {models}")
    proposed, compared = said["doctor"]
    assert "Next: safedraft doctor --pair tiny" in proposed
    assert "can decode together" in compared
    assert "hours for each billion parameters" in said["train-draft"][0]
    assert "my-model-strict" in said["pairs"][-1]
    assert (fresh_environment.work / "report/report.html").exists()
    (serving,) = (line for line in list_commands() if line.startswith("safedraft serve"))
    with fresh_environment.serve(*shlex.split(serving)) as address:
        asked = [line for line in list_commands() if line.startswith("curl")]
        answers = [ask(fresh_environment, line, address) for line in asked]
    assert '"choices"' in answers[0]
    assert re.search(r'safedraft_replies_total\{[^}]*guarded="true"[^}]*\} 1', answers[-1])


def ask(environment: Environment, line: str, address: str) -> str:
    words = shlex.split(line.replace("http://127.0.0.1:8000", address))
    return environment.run(*words, "--fail", "--silent", "--show-error")
