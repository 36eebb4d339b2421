"""Registries of entry points: lazy, and one clear line for everything that is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from installed import install

from safedraft.core.errors import SafeDraftError
from safedraft.core.plugins import Registry

GROUP = "safedraft.tests"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[int]:
    ours = {"alpha": "ours_module:ALPHA", "both": "ours_module:ALPHA"}
    theirs = {"broken": "theirs_module:X", "missing": "nowhere:X", "both": "theirs_module:X"}
    theirs |= {"gone": "ours_module:BETA"}
    install(tmp_path, "ours", {GROUP: ours}, {"ours_module": "ALPHA = 7"})
    install(tmp_path, "theirs", {GROUP: theirs}, {"theirs_module": "1 / 0\n"})
    monkeypatch.syspath_prepend(tmp_path)
    return Registry(GROUP, "thing")


def test_names_import_nothing(registry: Registry[int]) -> None:
    assert registry.names() == ["alpha", "both", "broken", "gone", "missing"]
    assert "ours_module" not in sys.modules
    assert registry.find("alpha") == 7
    assert "ours_module" in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alpa", "no thing is called 'alpa' (did you mean 'alpha'?); known are alpha, both, "),
        ("zz", "no thing is called 'zz'; known are alpha, both, broken, gone, missing"),
        ("broken", "the thing 'broken' of theirs 1.2 cannot be loaded (ZeroDivisionError: "),
        ("missing", "the thing 'missing' of theirs 1.2 cannot be loaded (ModuleNotFoundError: "),
        ("gone", "the thing 'gone' of theirs 1.2 cannot be loaded (AttributeError: "),
        ("both", "the thing 'both' is registered by both ours 1.2 and theirs 1.2: uninstall one"),
    ],
)
def test_errors_are_one_line(registry: Registry[int], name: str, message: str) -> None:
    with pytest.raises(SafeDraftError) as raised:
        registry.find(name)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_empty_group_points_to_the_installation() -> None:
    with pytest.raises(SafeDraftError, match="reinstall safedraft"):
        Registry("safedraft.none", "thing").find("alpha")


def test_importing_the_package_reads_no_metadata() -> None:
    code = "import sys, safedraft; assert 'importlib.metadata' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
