"""docs/reference.md says what the code says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "reference.py"))


def test_the_committed_page_is_current(tool: dict[str, Any]) -> None:
    assert (ROOT / "docs" / "reference.md").read_text("utf-8") == tool["page"](), "make reference"


def test_every_command_and_setting_has_a_meaning(tool: dict[str, Any]) -> None:
    page = tool["page"]()
    assert page.count("### safedraft ") == 18
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    assert not [line for line in rows if line.endswith("|  |")]


def test_every_variable_of_safedraft_is_listed(tool: dict[str, Any]) -> None:
    text = "".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    inner = {"SAFEDRAFT_OPERATOR", "SAFEDRAFT_ROLE_API_KEY"}  # between processes; a pattern
    named = set(re.findall(r"\bSAFEDRAFT_[A-Z_]+\b", text)) - inner
    assert named >= {"SAFEDRAFT_CACHE", "SAFEDRAFT_CONFIG", "SAFEDRAFT_API_KEY"}
    assert named <= tool["ENVIRONMENT"].keys()
