"""The commands of docs/guard-your-model.md, in their order, on tiny models."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import save_pair
from stage import serve_wheel

from safedraft import cli
from safedraft.models import proposals
from safedraft.models.registry import DraftCandidate, draft_candidates, find_pair
from safedraft.training.checks import Checks

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/guard-your-model.md").read_text("utf-8")
TARGET, DRAFT = "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"

SMALL = {
    "train-draft": "--harmful harmful.txt --ordinary ordinary.txt --steps 2 --rank 2 --no-risk "
    "--set answer_tokens=4 --set beginning_tokens=4 --set dressed=0",
    "generate": "--max-new-tokens 4",
    "calibrate": "--try alpha_union=0.8 --attack direct --limit 1 --max-new-tokens 2",
    "eval": "--max-new-tokens 2",
}
"""Options that make a command short on tiny models."""


def list_commands() -> list[str]:
    """Every command of the page, one a line."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def test_the_page_walks_from_an_installation_to_metrics() -> None:
    kinds = [" ".join(command.split()[:2]) for command in list_commands()]
    assert kinds[0] == "pip install"
    assert kinds[-1].startswith("curl")
    steps = ("doctor", "train-draft", "pairs", "generate", "calibrate", "eval", "report", "serve")
    assert list(dict.fromkeys(kind.split()[1] for kind in kinds[1:] if "curl" not in kind)) == [
        *steps
    ]


def test_the_extras_that_it_installs_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (installed,) = re.findall(r"pip install -e '\.\[(.*)\]'", PAGE)
    assert {*installed.split(",")} <= project["optional-dependencies"].keys()


def test_the_table_has_every_draft_that_the_doctor_proposes() -> None:
    (table,) = re.findall(r"^\| targets \|.*?\n\n", PAGE, re.DOTALL | re.MULTILINE)
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in table.strip().splitlines()[2:]
    ]
    shown = {row[1]: row for row in rows}
    for candidate in draft_candidates():
        row = shown[candidate.name]
        assert row[2].startswith(candidate.license)
        for name in candidate.template:
            assert f"{name}=" in row[3]


@pytest.mark.slow
def test_every_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    folders = save_pair(tmp_path / "models", max_position_embeddings=8192)
    for name in ("harmful", "ordinary"):
        lines = [f"{name} thing number {number}" for number in range(30)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), "utf-8")
    serve_wheel(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))  # where inspect_ai has its buffers
    monkeypatch.setattr(Checks, "problems", ())  # no training makes these models refuse
    monkeypatch.setattr(proposals, "draft_candidates", lambda: [tiny_candidate(folders[1])])

    def run(command: list[str]) -> str:
        words = [{TARGET: str(folders[0]), DRAFT: str(folders[1])}.get(w, w) for w in command]
        monkeypatch.setattr(sys, "argv", [*words, *shlex.split(SMALL.get(words[1], ""))])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert not ended.value.code, (words, out, err)
        return out + err

    commands = [shlex.split(command, comments=True) for command in list_commands()]
    said = [
        run(command) for command in commands if command[0] == "safedraft" and command[1] != "serve"
    ]
    assert f"Next: safedraft doctor {folders[0]} {folders[1]}" in said[0]
    assert "can decode together" in said[1]
    assert "hours for each billion weights" in said[2]
    assert "my-model is registered" in said[3]
    assert find_pair("my-model-strict").config.alpha_union == 2.0
    assert (tmp_path / "report/report.html").exists()
    (serving,) = (command for command in commands if command[1] == "serve")
    with server(serving) as port:
        said = [ask(command, port) for command in commands if command[0] == "curl"]
    assert '"choices"' in said[0]
    assert re.search(r'safedraft_replies_total\{[^}]*guarded="true"[^}]*\} 1', said[-1])


def tiny_candidate(draft: Path) -> DraftCandidate:
    return DraftCandidate(
        name=str(draft),
        family="Tiny",
        model_types=("llama",),
        tokens={"<|end|>": 256},
        weights=0.00001,
        license="Apache-2.0",
    )


@contextmanager
def server(command: list[str]) -> Iterator[int]:
    """The server of this command, at a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    words = [sys.executable, "-m", *command, "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # tiny models: threads only wait
    running = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert running.stderr
        said = ""
        while "served at http://" not in said:
            line = running.stderr.readline()
            assert line, f"the server ended: {said}"
            said += line
        yield port
    finally:
        running.kill()
        running.wait()


def ask(command: list[str], port: int) -> str:
    words = [word.replace("127.0.0.1:8000", f"127.0.0.1:{port}") for word in command]
    answered = subprocess.run(
        [*words, "--fail", "--silent", "--show-error"], capture_output=True, text=True, check=False
    )
    assert answered.returncode == 0, answered.stderr
    return answered.stdout
