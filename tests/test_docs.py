"""What the pages show is what the tested files hold."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import safedraft
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


NOT_INSTALLED = re.compile(
    r"\b(?:docs|benchmarks|examples|tests|tools|docker)/\w|\bconstraints[-.]|`make |Makefile"
)
"""What only a clone has."""


def list_messages(code: str) -> Iterator[str]:
    """The texts of a module that are not docstrings."""
    tree = ast.parse(code)
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(getattr(part, "value", "")) for part in node.values)
        elif isinstance(node, ast.Constant) and node not in docstrings:
            yield str(node.value)


def test_messages_name_pages_by_titles_and_nothing_that_is_not_installed() -> None:
    package = ROOT / "src/safedraft"
    sources = [path.read_text("utf-8") for path in package.rglob("*.py")]
    messages = [text for code in sources for text in list_messages(code)]
    for kind in ("html", "jinja", "js"):
        messages += [path.read_text("utf-8") for path in package.rglob(f"*.{kind}")]
    documented = [inspect.getdoc(getattr(safedraft, name)) or "" for name in safedraft.__all__]
    assert not [text for text in messages + documented if NOT_INSTALLED.search(text)]
    named = {title for text in messages for title in re.findall(r'the page "([^"]+)"', text)}
    titles = {page.read_text("utf-8").partition("\n")[0].removeprefix("# ") for page in TEXTS}
    assert len(named) > 3
    assert named <= titles


def test_a_path_in_a_message_is_found() -> None:
    code = '''"""docs/a.md"""\nraise ValueError(f"{name}: see " "docs/b.md")\n'''
    found = [text for text in list_messages(code) if NOT_INSTALLED.search(text)]
    assert "docs/b.md" in "".join(found)
    assert "docs/a.md" not in "".join(found)


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
