"""Pages of the documentation site that are not in docs/: those of the root, and the Python API.

A hook of mkdocs. Links to files that the site does not have become plain text.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
FROM_ROOT = {"README.md": "index.md"} | {
    name: name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
}
LINK = re.compile(r"(!?)\[([^]]*)\]\(((?![a-z]+:)[^)#]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for source, page in FROM_ROOT.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, page, content=relink(text, ROOT)))
    files.append(File.generated(config, "api.md", content=api()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Leave links out that lead nowhere on the site."""
    return markdown if page.file.generated_by else relink(markdown, ROOT / "docs")


def relink(text: str, folder: Path) -> str:
    """Make the links of a page in ``folder`` those of the site."""

    def replace(match: re.Match[str]) -> str:
        mark, label, file, anchor = match.groups(default="")
        linked = (folder / file).resolve()
        if linked.parent == ROOT / "docs":
            return f"{mark}[{label}]({linked.name}{anchor})"
        if linked.parent == ROOT and linked.name in FROM_ROOT:
            return f"{mark}[{label}]({FROM_ROOT[linked.name]}{anchor})"
        return label

    return LINK.sub(replace, text)


def api() -> str:
    """The page of the Python API: every public name in the order of ``__all__``."""
    tree = ast.parse((ROOT / "src/safedraft/__init__.py").read_text("utf-8"))
    names = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return "# Python API\n\n" + "\n\n".join(f"::: safedraft.{name}" for name in names) + "\n"
