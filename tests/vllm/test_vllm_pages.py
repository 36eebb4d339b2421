"""The blocks of the pages that need vLLM run on tiny models."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import CONFORMANCE, save_pair, save_prompts
from helpers.pages import BY_VLLM, PAGES, read_blocks
from small import SMALL, closing
from test_server import ask, started
from widen import widen

import safedraft

pytestmark = pytest.mark.vllm

BLOCKS = [block for page in PAGES for block in read_blocks(page) if block.note == BY_VLLM]
COMMANDS = [
    words
    for block in BLOCKS
    if block.language != "python"
    for words in block.commands
    if words[0] != "make"
]
SERVERS = [words[2:] for words in COMMANDS if words[1] == "serve"]
OTHERS = [words[1:] for words in COMMANDS if words[1] != "serve"]
MORE = {
    "generate": ["--max-new-tokens=4"],
    "bench": ["--engine-option=max_model_len=1024"],
    "eval": [
        "--engine-option=max_model_len=1024",
        "--source=harmful.txt",
        "--control=ordinary.txt",
    ],
}
"""Options that make a command short, let it do without a download, or make room for its prompts."""
PAIRS = ("qwen2.5-coder", "my-pair", "MY_PAIR")
"""Pairs that the pages name."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recorded FILE and its models, where every pair has tiny models."""
    for name in ("target", "near"):
        widen(CONFORMANCE / f"tiny-{name}", tmp_path / f"tiny-{name}")
    save_prompts(tmp_path)
    (tmp_path / "FILE").symlink_to(CONFORMANCE / "near.json")
    target, draft = save_pair(tmp_path, hidden_size=128, head_dim=32, max_position_embeddings=2048)
    models = f'target = "{target}"\ndraft = "{draft}"\nbare_draft = true\n'
    (tmp_path / "config/pairs").mkdir(parents=True)
    (tmp_path / "config/pairs/tiny.toml").write_text(
        "".join(f'["{name}"]\n{models}' for name in PAIRS), "utf-8"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))  # where inspect_ai has its buffers
    return tmp_path


@pytest.mark.parametrize("words", OTHERS, ids=shlex.join)
@pytest.mark.usefixtures("folder")
def test_a_command_runs(words: list[str]) -> None:
    words = [*words, *MORE.get(words[0], ())]
    given = " ".join(words)
    options = [
        f"--engine-option={name}={str(value).lower()}"
        for name, value in SMALL.items()
        if f"{name}=" not in given
    ]
    command = [sys.executable, "-m", "safedraft", *words, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout, done.stderr)


@pytest.mark.usefixtures("folder")
def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    load, small = safedraft.load_pair, {**SMALL, "max_model_len": 1024}
    monkeypatch.setattr(safedraft, "load_pair", lambda name, **more: load(name, **small | more))
    for block in BLOCKS:
        if block.language == "python":
            names: dict[str, Any] = {"safedraft": safedraft}
            exec(compile(block.text, str(block.page), "exec"), names)
            with closing(names["pair"]):
                assert len(names["replies"]) == 2


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="each rank is bound to a core of its own")
@pytest.mark.parametrize("words", SERVERS, ids=shlex.join)
def test_a_server_answers(folder: Path, words: list[str]) -> None:
    words = shlex.split(shlex.join(words).replace("--port 8000", ""))
    bound = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"} if "2" in words else {}
    with started(words, folder, **bound) as address:
        status, _ = ask(address, model=words[0])
    assert status == 200
