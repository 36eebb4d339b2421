"""What counts as the same code, and that `tools/vllm_hooks.py` says what the plug-in says."""

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

OLD = {
    "Runner.run": "    def run(self):\n        return 1\n",
    "stop": "def stop():\n    return 1\n",
}
NEW = {name: code.replace("1", "2") for name, code in OLD.items()}
HOMES = {"Runner": "vllm.runner", "stop": "vllm.tools.stop"}


def fingerprints(codes: dict[str, str]) -> dict[str, str]:
    return {name: hooks.fingerprint(code) for name, code in codes.items()}


METHOD = """    @classmethod
    def run(cls, count, *, fast=True):
        limit = 2
        return f"{count:>{limit}}", [*range(limit)], {**{}, "a": None}
"""

SAME_METHOD = """    @classmethod
    def run(
        cls, count: int, *, fast: bool = True  # for tests
    ) -> tuple[str, list[int], dict[str, None]]:
        '''Run.

Twice.'''
        limit: int = 2
        rest: str
        return (f'{count:>{limit}}', [*range(limit)], {**{}, u"a": None})
"""

FIELDS = "class Row(NamedTuple):\n    count: int\n    name: str = ''\n"


@pytest.mark.parametrize(
    ("code", "other"),
    [
        (METHOD, SAME_METHOD),
        (FIELDS, FIELDS.replace("    count: int", "    '''A row.'''\n\n    count: int  # rows")),
        (FIELDS + METHOD, FIELDS + SAME_METHOD),
    ],
    ids=["a method", "a class", "a method of a class"],
)
def test_words_and_annotations_of_functions_do_not_count(code: str, other: str) -> None:
    assert hooks.fingerprint(code) == hooks.fingerprint(other)


@pytest.mark.parametrize(
    ("code", "old", "new"),
    [
        (METHOD, "limit = 2", "limit = 3"),
        (METHOD, "fast=True", "fast=False"),
        (METHOD, "fast=True", "quick=True"),
        (METHOD, "@classmethod", "@staticmethod"),
        (METHOD, "{count:>", "{count:<"),
        (METHOD, '"a": None', '"a": None, **{}'),
        (METHOD, '"a": None', '"a": ...'),
        (METHOD, "{**{}", "{0: {}"),
        (FIELDS, "    count: int\n", ""),
        (FIELDS, "count: int", "count: ClassVar[int]"),
        (FIELDS, "name: str = ''", "name = ''"),
        (FIELDS, "NamedTuple", "Row"),
    ],
)
def test_what_changes_a_hook_counts(code: str, old: str, new: str) -> None:
    assert old in code
    assert hooks.fingerprint(code) != hooks.fingerprint(code.replace(old, new))


def test_every_version_of_python_has_the_same_fingerprints() -> None:
    assert hooks.fingerprint(METHOD) == "c126f9fb835469a7"


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
