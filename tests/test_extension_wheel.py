"""A third party's wheel brings one of each extension point, and all of them are found and run."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import CONFORMANCE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with both wheels, and this one's dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder / "venv")
    interpreter = folder / "venv/bin/python"
    site = Path(run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    for project in (ROOT, ROOT / "examples/extension"):
        run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, project)
    wheels = sorted(folder.glob("*.whl"))
    assert len(wheels) == 2
    run(interpreter, "-m", "pip", "install", "--no-deps", "--no-index", *wheels)
    # Dependencies come last on the path, so that the new environment's own packages win.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return interpreter


def run(*command: object) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd="/",
        env={
            **os.environ,
            "PYTHONPATH": "",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_the_wheels_are_what_is_imported(python: Path) -> None:
    code = (
        "import safedraft, safedraft_example; print(safedraft.__file__, safedraft_example.__file__)"
    )
    for file in run(python, "-c", code).split():
        assert str(python.parents[1]) in file


def test_the_command_lists_what_the_wheel_brings(python: Path) -> None:
    listed = run(python, "-m", "safedraft", "eval", "--list")
    for name in ("always_union", "polite", "whisper", "brevity", "kitchen"):
        assert name in listed


def test_rule_and_engine_decode(python: Path) -> None:
    code = f"""
import safedraft
pair = safedraft.load_pair(target={str(CONFORMANCE / "tiny-target")!r},
    draft={str(CONFORMANCE / "tiny-near")!r}, engine="counting", dtype="float32")
sampling = safedraft.SamplingParams(max_new_tokens=12)
reply = pair.stream_ids([5, 6, 7], sampling=sampling, rule="always_union").drain()
assert [token.scheme for token in reply.trace] == ["union"] * 12, reply.trace
assert {{token.alpha for token in reply.trace}} == {{0.8}}
assert pair.engine.batches == 1
print("decoded")
"""
    assert run(python, "-c", code) == "decoded"


def test_defense_attack_judge_and_source_run(python: Path) -> None:
    code = """
import asyncio
from types import SimpleNamespace
from safedraft.defenses import find_defense
from safedraft.evaluation.attacks import ATTACKS
from safedraft.evaluation.suites import find_suite
from safedraft.evaluation.tasks import find_judge
from safedraft.prompts.sources import find_source
(first, *_) = find_source("kitchen").require_split("report")
assert find_suite("whisper").attack == "whisper"
messages = ATTACKS.find("whisper")(first, None)
assert messages[0]["content"].startswith("(whispering) how do i cook"), messages
asked = []
reply = find_defense("polite")(None, messages, None, None, ask=lambda pair, messages, *_: messages)
assert reply[0]["content"].startswith("Please be kind. (whispering)"), reply
state = SimpleNamespace(output=SimpleNamespace(completion="One. Two. Three."), metadata={})
judged = [asyncio.run(find_judge(spec)(state, None)).value
    for spec in ("brevity", "brevity:sentences=3")]
assert judged == [0, 1], judged
print("ran")
"""
    assert run(python, "-c", code) == "ran"
