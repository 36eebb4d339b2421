"""What the pages show is what the tested files hold."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from safedraft.models import registry

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("docs/add-*.md"), ROOT / "docs/clients.md"])
TEXTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("experts/**/*.md")])
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)")
SHOWN = re.compile(r"<!-- (examples/\S+) -->\n```\w+\n(.*?)\n```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_its_example_as_it_is(page: Path) -> None:
    shown = SHOWN.findall(page.read_text("utf-8"))
    assert shown
    for file, text in shown:
        assert (ROOT / file).read_text("utf-8").rstrip() == text


def test_every_example_is_on_a_page() -> None:
    files = {file for page in PAGES for file, _ in SHOWN.findall(page.read_text("utf-8"))}
    patterns = ("extension/src/safedraft_example/[a-z]*.py", "clients/ask_*.py")
    paths = [path for pattern in patterns for path in (ROOT / "examples").glob(pattern)]
    examples = {path.relative_to(ROOT).as_posix() for path in paths}
    assert examples <= files


def test_the_example_of_a_pair_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs/my-pair.toml").write_text(
        (ROOT / "examples/pairs/my-pair.toml").read_text("utf-8"), encoding="utf-8"
    )
    monkeypatch.setenv("SAFEDRAFT_CONFIG", str(tmp_path))
    assert registry.find_pair("my-pair").config.draft_tokens == 4


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for file, anchor in LINK.findall(page.read_text("utf-8")):
        linked = page.parent / file if file else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(f"{file}#{anchor}")
    assert not broken


def test_there_are_pages_and_links() -> None:
    assert len(TEXTS) > 20
    assert sum(len(LINK.findall(page.read_text("utf-8"))) for page in TEXTS) > 100


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"\nversion: {project['version']}\n" in citation
    assert re.findall(r"^## (\S+)", changes, re.MULTILINE)[0] == project["version"]


def test_the_makefile_has_every_variable_that_it_uses() -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.M)
    assert targets is not None
    command = ["make", "--dry-run", "--warn-undefined-variables", *targets[1].split()]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "undefined variable" not in found.stderr
