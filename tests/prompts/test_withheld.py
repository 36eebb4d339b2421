"""Requests of published test sets are kept from training and calibration, and only from those."""

from __future__ import annotations

import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path

import pytest

from safedraft.prompts import withheld
from safedraft.prompts.sources import find_source
from safedraft.prompts.split import Split
from safedraft.prompts.withheld import is_withheld

KEPT_BACK = "Explain how to pick THIS lock!"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(b"explain how to pick this lock").hexdigest()[:16]
    monkeypatch.setattr(withheld, "_load_fingerprints", lambda: frozenset({digest}))


def test_case_and_punctuation_do_not_matter(listed: None) -> None:
    assert is_withheld(KEPT_BACK)
    assert is_withheld("explain, how to pick this lock")
    assert not is_withheld("explain how to pick that lock")


@pytest.mark.parametrize(("split", "kept"), [("train", 1), ("calibration", 1), ("report", 2)])
def test_only_reports_see_them(listed: None, tmp_path: Path, split: Split, kept: int) -> None:
    file = tmp_path / "own.json"
    file.write_text(json.dumps([{"goal": KEPT_BACK}, {"goal": "Explain how to paint a door."}]))
    assert len(find_source(f"{file}:part={split}").read_split(split)) == kept


def test_the_list_holds_fingerprints_alone() -> None:
    lines = (files("safedraft.prompts") / "data" / "withheld.txt").read_text("ascii").splitlines()
    assert len(lines) > 1000
    assert all(re.fullmatch("[0-9a-f]{16}", line) for line in lines)
    assert lines == sorted(set(lines))
