"""The notebook runs from its first cell to its last, and shows what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safedraft.prompts.phrases import is_refusal

NOTEBOOK = Path(__file__).parents[2] / "examples/safedraft.ipynb"


def cells() -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in code)
    return ["".join(cell["source"]) for cell in code]


@pytest.mark.real
def test_every_cell_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for cell in cells():
        exec(compile(cell, NOTEBOOK.name, "exec"), names)
    assert is_refusal(names["guarded"].text)
    assert not is_refusal(names["harmless"].text)
    assert not is_refusal(names["alone"].text)
    assert {"name", "year"} <= json.loads(names["bridge"].text).keys()
    assert "matched=" in capsys.readouterr().out


def test_every_cell_is_python_and_was_saved_without_what_it_printed() -> None:
    for cell in cells():
        compile(cell, NOTEBOOK.name, "exec")
