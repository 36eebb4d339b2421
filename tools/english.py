"""Report idioms that plain technical English does not have: in the code's texts and on the pages.

Read are comments and strings of the source files, comments and descriptions of their data, the
playground's files and the Makefile whole, and the pages without what they quote: in backticks, in
quotation marks, or as a program's output. The exit code is 1 if there is a finding.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What is wrong, and what to write instead. A space matches any white space, quotes and # included.
IDIOMS = {
    r"behind(?! an? (?:reverse proxy|proxy|API|endpoint|firewall))": "after",
    r"told(?! apart)": "reported, instructed",
    r"(?:goes|go|going|went) by": "follows, or bypasses, whichever is meant",
    r"(?:goes|go|going|went) on(?! from)": "continues, resumes",
    r"in vain": "without effect, or what is lost",
    r"dear(?:er|est|ly)?": "expensive",
    r"mend(?:s|ed|ing)?": "fix",
    r"at the (?:least|most)": "at least, at most",
    r"(?:gives?|gave|giving) in": "complies, answers",
    r"hand(?:s|ed)? out": "returns, provides",
    r"(?:has|have|had) (?:no|a|its|their) say": "has an influence, or has none",
    r"takes? (?:its|their|the) words? back": "resumes",
    r"(?:be|is|are) had": "is fetched, read or supported",
    r"(?<!there\W)(?:is|are) no (?!safer|longer|more|less|faster|reason|refusal)\w+": "is not a",
    r"(?-i:Of) (?!about |\d)[^,.;:|]+[.;:|]": "a whole sentence, with its subject first",
}
PATTERNS = [
    (re.compile(rf"(?i)\b{idiom}(?!\w)".replace(" ", r"\s+")), instead)
    for idiom, instead in IDIOMS.items()
]
PRINTED = re.compile(r"^ *```text\n.*?^ *```$", re.DOTALL | re.MULTILINE)
QUOTED = re.compile(r"`[^`\n]+`|\"[^\"\n]+\"")
# What is data in these files, prompts and replies above all, is in anyone's words.
DESCRIPTIONS = re.compile(r"\s*#|(?:description|title) = ")
STRINGS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}


def texts(path: Path) -> str:
    """Return a file's text without its code and data, and a page's without what it quotes."""
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        text = PRINTED.sub(lambda block: "\n" * block[0].count("\n"), text)
        return QUOTED.sub("…", text)
    if path.suffix == ".toml":
        return "\n".join(line * bool(DESCRIPTIONS.match(line)) for line in text.splitlines())
    if path.suffix != ".py":
        return text
    lines = text.splitlines()
    kept = [list(" " * len(line)) for line in lines]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in STRINGS:
            continue
        (first, start), (last, end) = token.start, token.end
        for row in range(first, last + 1):
            piece = slice(start if row == first else 0, end if row == last else None)
            kept[row - 1][piece] = re.sub("[\"'#]", " ", lines[row - 1][piece])
    return "\n".join("".join(line) for line in kept)


def findings(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the idiom as it is written, and what to write instead."""
    text = texts(path)
    for pattern, instead in PATTERNS:
        for match in pattern.finditer(text):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), instead


def files() -> list[Path]:
    """What is read when no file is named."""
    kinds = {".py", ".js", ".css", ".html", ".jinja", ".toml"}
    code = [path for path in (ROOT / "src").rglob("*") if path.suffix in kinds]
    places = ("*.md", "docs/*.md", "experts/**/*.md")
    pages = [path for place in places for path in ROOT.glob(place)]
    return [*sorted(code), *sorted(pages), ROOT / "Makefile"]


def main(paths: Iterable[Path]) -> int:
    """Print every finding; return 1 if there is one."""
    found = [(path, *finding) for path in paths for finding in sorted(findings(path))]
    for path, line, idiom, instead in found:
        print(f"{os.path.relpath(path)}:{line}: {idiom!r}: write {instead}")
    return int(bool(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="instead of the source and the pages")
    sys.exit(main(parser.parse_args().files or files()))
