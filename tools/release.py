"""Check that this tree can be released, build and test its wheel, and show the release's commands.

Each check that fails is one line that says what to do, and the exit code is 1. Only `--publish`
tags the commit and uploads the files of dist/.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TWINE = ".venv-release/bin/twine"


def git(*arguments: str) -> str:
    """Return what a git command prints about this tree."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def find_problems(version: str, publish: bool) -> Iterator[str]:
    """Yield why the tree cannot be released, each with what to do about it.

    Only what is published needs the date of the release.
    """
    if git("status", "--porcelain"):
        yield "the tree has changes: commit them, or remove them (git status)"
    if (branch := git("branch", "--show-current").strip()) != "main":
        yield f"the branch is {branch or 'none'}: a release is made on main (git switch main)"
    cited = _find(r"^version: (.*)$", "CITATION.cff")
    if cited != version:
        yield f"CITATION.cff has the version {cited}: write {version}, as in pyproject.toml"
    heading = _find(r"^## (.*)$", "CHANGELOG.md")
    dates = r"\d{4}-\d\d-\d\d" if publish else r"\d{4}-\d\d-\d\d|unreleased"
    if not re.fullmatch(rf"{re.escape(version)} \((?:{dates})\)", heading or ""):
        day = date.today().isoformat()
        yield f"CHANGELOG.md begins with {heading!r}: write '## {version} ({day})', with the date"
    if git("tag", "--list", f"v{version}"):
        yield (
            f"the tag v{version} exists: raise the version in pyproject.toml, CITATION.cff and "
            "CHANGELOG.md"
        )


def _find(pattern: str, file: str) -> str | None:
    """The first match in a file, or None."""
    match = re.search(pattern, (ROOT / file).read_text("utf-8"), re.MULTILINE)
    return match and match[1].strip()


def list_commands(version: str) -> list[list[str]]:
    """Return the commands that make the release."""
    files = sorted(f"dist/{path.name}" for path in (ROOT / "dist").iterdir())
    return [
        [TWINE, "upload", *files],
        ["git", "tag", "-a", f"v{version}", "-m", f"SafeDraft {version}"],
    ]


def release(project: dict[str, Any], publish: bool) -> str | None:
    """Build, test and, with ``publish``, release; return the line of what failed."""
    if "Repository" not in project.get("urls", {}):
        sys.stderr.write("warning: pyproject.toml has no Repository in [project.urls]: add it\n")
    if subprocess.run(["make", "test-wheel"], cwd=ROOT, check=False).returncode:
        return "the wheel or its tests failed: fix what make test-wheel reports"
    commands = list_commands(project["version"])
    if not publish:
        sys.stdout.write("ready; make release PUBLISH=1 runs\n")
    for command in commands:
        sys.stdout.write(f"  {shlex.join(command)}\n")
        sys.stdout.flush()
        if publish and subprocess.run(command, cwd=ROOT, check=False).returncode:
            return f"{shlex.join(command[:2])} failed: fix what it reports, then run it by hand"
    return None


def main() -> int:
    """Run the checks, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--publish", action="store_true", help="tag the commit and upload dist/")
    publish = parser.parse_args().publish
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    problems = list(find_problems(project["version"], publish))
    for problem in find_problems(project["version"], publish=True):
        if problem not in problems:
            sys.stderr.write(f"warning: --publish refuses this tree: {problem}\n")
    if not problems and (failure := release(project, publish)):
        problems = [failure]
    for problem in problems:
        sys.stderr.write(f"error: {problem}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
