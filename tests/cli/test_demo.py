"""``make demo``, with tiny models."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import safedraft

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def test_the_demo_compares_its_prompts(
    tiny_pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pair = safedraft.load_pair(*tiny_pair, use_adapter=False)
    monkeypatch.setattr(safedraft, "load_pair", lambda name: pair)
    picture = tmp_path / "demo.svg"
    monkeypatch.setattr(sys, "argv", ["demo.py", "--max-new-tokens", "6", "--svg", str(picture)])
    runpy.run_path(str(DEMO), run_name="__main__")
    shown = capsys.readouterr().out
    assert shown.count("the target alone") >= 3
    assert "with the start of the answer" in shown
    assert picture.read_text().startswith("<svg")
