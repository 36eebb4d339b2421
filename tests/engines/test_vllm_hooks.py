"""`tools/vllm_hooks.py` says of a vLLM what the plug-in says at a start."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZipFile

import pytest

from safedraft.core.errors import SafeDraftError, UnguardedWarning
from safedraft.engines.vllm import hooks
from safedraft.models.fingerprint import digest

OLD = {
    "Runner.run": "    def run(self):\n        return 1\n",
    "stop": "def stop():\n    return 1\n",
}
NEW = {name: code.replace("1", "2") for name, code in OLD.items()}
HOMES = {"Runner": "vllm.runner", "stop": "vllm.tools.stop"}


def fingerprints(codes: dict[str, str]) -> dict[str, str]:
    return {name: digest(code, digits=16) for name, code in codes.items()}


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tool and the plug-in, with two known versions of two hooks; the new one never ran."""
    path = Path(__file__).parents[2] / "tools/vllm_hooks.py"
    spec = importlib.util.spec_from_file_location("vllm_hooks", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known = {"1.0": fingerprints(OLD), "2.0": fingerprints(NEW)}
    for place in (module, hooks):
        for name, value in {"HOMES": HOMES, "HOOKS": known, "RUN": ("1.0",)}.items():
            monkeypatch.setattr(place, name, value)
    return module


def make_wheel(folder: Path, codes: dict[str, str]) -> Path:
    wheel = folder / "vllm-9.9-py3-none-any.whl"
    with ZipFile(wheel, "w") as file:
        file.writestr("vllm/runner.py", "class Runner:\n" + codes["Runner.run"])
        file.writestr("vllm/tools/stop.py", codes["stop"])
    return wheel


def start(codes: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the plug-in says of an installed vLLM with this code."""
    installed = ModuleType("vllm")
    vars(installed)["__version__"] = "9.9"
    monkeypatch.setitem(sys.modules, "vllm", installed)
    monkeypatch.setattr(hooks, "fingerprints", lambda: iter(fingerprints(codes).items()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnguardedWarning)
        try:
            hooks.require_known_hooks()
        except UnguardedWarning:
            return "supported with a warning: as 2.0"
        except SafeDraftError as error:
            return "refused: " + str(error).removeprefix("vLLM 9.9 is not supported: ")
    return "supported: as 1.0"


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (OLD, "supported: as 1.0"),
        (NEW, "supported with a warning: as 2.0"),
        ({**OLD, "stop": NEW["stop"]}, "refused: stop differ from 1.0"),
        ({**OLD, "stop": "def stop():\n    return 3\n"}, "refused: stop differ from 1.0"),
    ],
    ids=["run", "read", "a mixture of known versions", "unknown"],
)
def test_the_tool_says_what_the_plug_in_says(
    tool: Any,
    codes: dict[str, str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["vllm_hooks", str(make_wheel(tmp_path, codes))])
    assert tool.main() == expected.startswith("refused")
    *lines, last = capsys.readouterr().out.splitlines()
    assert last.startswith(f"# {expected}")
    assert start(codes, monkeypatch).startswith(expected)
    for line, (name, found) in zip(lines, fingerprints(codes).items(), strict=True):
        assert line.startswith(f'"{name}": "{found}",  # ')
