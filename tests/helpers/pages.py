"""The commands and examples that pages show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("experts/**/*.md")],
    key=lambda page: page.relative_to(ROOT).as_posix(),
)

NOT_RUN = "not run: needs "
"""Begins the note of a block that no test runs; then comes what it needs."""
BY_VLLM = "run by make test-vllm"
"""The note of a block that runs on tiny models in vLLM's environment."""

_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<note>[^\n]*) -->\n)?^(?P<margin> *)```(?P<language>sh|bash|python)\n"
    r"(?P<text>.*?)^ *```",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    text: str
    note: str
    """The comment before it: a file that it shows, or why it runs elsewhere or not at all."""

    @property
    def name(self) -> str:
        """The page and how the block begins."""
        return f"{self.page.relative_to(ROOT).as_posix()}: {self.text.splitlines()[0][:60]}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command, if it is a block of a shell."""
        lines = re.sub(r"\\\n\s*", " ", self.text).splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def read_blocks(page: Path) -> Iterator[Block]:
    """The blocks of commands and of Python on a page."""
    for found in _BLOCK.finditer(page.read_text("utf-8")):
        text = found["text"].replace(f"\n{found['margin']}", "\n").removeprefix(found["margin"])
        yield Block(page, found["language"], text, found["note"] or "")
