"""What the pages show is what the tested files hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from safedraft.models import registry

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("add-*.md"))
SHOWN = re.compile(r"<!-- (examples/\S+) -->\n```\w+\n(.*?)\n```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_its_example_as_it_is(page: Path) -> None:
    shown = SHOWN.findall(page.read_text("utf-8"))
    assert shown
    for file, text in shown:
        assert (ROOT / file).read_text("utf-8").rstrip() == text


def test_every_example_is_on_a_page() -> None:
    files = {file for page in PAGES for file, _ in SHOWN.findall(page.read_text("utf-8"))}
    folder = ROOT / "examples/extension/src/safedraft_example"
    examples = {path.relative_to(ROOT).as_posix() for path in folder.glob("[a-z]*.py")}
    assert examples <= files


def test_the_example_of_a_pair_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs/my-pair.toml").write_text(
        (ROOT / "examples/pairs/my-pair.toml").read_text("utf-8"), encoding="utf-8"
    )
    monkeypatch.setenv("SAFEDRAFT_CONFIG", str(tmp_path))
    assert registry.find_pair("my-pair").config.draft_tokens == 4
