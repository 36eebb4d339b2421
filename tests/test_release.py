"""`tools/release.py` in a small repository, whose Makefile and twine stand for the real ones."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools/release.py"
FILES = {
    "pyproject.toml": '[project]\nversion = "1.2.0"\n[project.urls]\nRepository = "https://x.org"\n',
    "CITATION.cff": "title: X\nversion: 1.2.0\n",
    "CHANGELOG.md": "# Changelog\n\n## 1.2.0 (2026-12-01)\n\n## 1.1.0 (unreleased)\n",
    "Makefile": "test-wheel:\n\tmkdir -p dist\n\ttouch dist/x-1.2.0.tar.gz dist/x-1.2.0.whl\n",
    ".gitignore": "dist/\n.venv-*/\n",
}
TWINE = '#!/bin/sh\necho "$@" > uploaded\n'


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository that can be released."""
    folder = tmp_path / "project"
    twine = folder / ".venv-release/bin/twine"
    twine.parent.mkdir(parents=True)
    twine.write_text(TWINE)
    twine.chmod(0o755)
    (folder / "tools").mkdir()
    shutil.copy(TOOL, folder / "tools")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "config", "user.name", "A")
    git(folder, "config", "user.email", "a@x.org")
    commit(folder)
    return folder


def commit(root: Path) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "A change")


def release(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "tools/release.py", *options]
    return subprocess.run(command, cwd=root.parent, capture_output=True, text=True)


def edit(root: Path, name: str, before: str, after: str) -> None:
    text = (root / name).read_text()
    assert before in text
    (root / name).write_text(text.replace(before, after, 1))
    commit(root)


STATES = {
    "changes": (lambda root: (root / "new.py").touch(), "the tree has changes: commit them"),
    "branch": (lambda root: git(root, "switch", "-c", "other"), "the branch is other: "),
    "detached": (lambda root: git(root, "switch", "--detach"), "the branch is none: "),
    "citation": (
        lambda root: edit(root, "CITATION.cff", "1.2.0", "1.1.0"),
        "CITATION.cff has the version 1.1.0: write 1.2.0",
    ),
    "no date": (
        lambda root: edit(root, "CHANGELOG.md", "2026-12-01", "unreleased"),
        "CHANGELOG.md begins with '1.2.0 (unreleased)': write '## 1.2.0 (20",
    ),
    "other changes": (
        lambda root: edit(root, "CHANGELOG.md", "1.2.0", "1.1.9"),
        "CHANGELOG.md begins with '1.1.9 (2026-12-01)': write '## 1.2.0 (20",
    ),
    "tag": (lambda root: git(root, "tag", "v1.2.0"), "the tag v1.2.0 exists: raise the version"),
    "wheel": (
        lambda root: edit(root, "Makefile", "mkdir -p dist", "false"),
        "the wheel or its tests failed: fix what make test-wheel reports",
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_a_tree_that_is_not_ready_is_refused_in_one_line(root: Path, name: str) -> None:
    change, message = STATES[name]
    change(root)
    done = release(root, "--publish")
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: {message}")
    assert "twine" not in done.stdout
    assert not (root / "uploaded").exists()


def test_all_that_is_wrong_is_named_at_once(root: Path) -> None:
    edit(root, "CITATION.cff", "1.2.0", "1.1.0")
    (root / "new.py").touch()
    assert len(release(root).stderr.splitlines()) == 2
    assert not (root / "dist").exists()


def test_without_publish_the_commands_are_only_shown(root: Path) -> None:
    done = release(root)
    assert (done.returncode, done.stderr) == (0, "")
    assert "  git tag -a v1.2.0 -m 'SafeDraft 1.2.0'\n" in done.stdout
    assert "  .venv-release/bin/twine upload dist/x-1.2.0.tar.gz dist/x-1.2.0.whl\n" in done.stdout
    assert git(root, "tag") == ""
    assert not (root / "uploaded").exists()


def test_only_a_release_needs_its_date(root: Path) -> None:
    edit(root, "CHANGELOG.md", "2026-12-01", "unreleased")
    done = release(root)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: --publish refuses this tree: CHANGELOG.md begins with")
    assert release(root, "--publish").returncode == 1


def test_publish_tags_and_uploads(root: Path) -> None:
    assert release(root, "--publish").returncode == 0
    assert git(root, "cat-file", "-t", "v1.2.0") == "tag\n"  # annotated
    assert (root / "uploaded").read_text() == "upload dist/x-1.2.0.tar.gz dist/x-1.2.0.whl\n"


def test_an_upload_that_fails_is_reported(root: Path) -> None:
    (root / ".venv-release/bin/twine").write_text("#!/bin/sh\nexit 1\n")
    done = release(root, "--publish")
    assert done.returncode == 1
    assert "error: .venv-release/bin/twine upload failed: fix what it reports" in done.stderr


def test_a_project_without_an_address_is_warned_of(root: Path) -> None:
    edit(root, "pyproject.toml", "Repository", "Paper")
    done = release(root)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: pyproject.toml has no Repository in [project.urls]")
