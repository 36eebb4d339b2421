"""The tool that reports idioms."""

from __future__ import annotations

import contextlib
import io
import runpy
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "english.py"
TOOLS = runpy.run_path(str(TOOL))


def run(path: Path) -> tuple[int, list[str]]:
    """The exit code, and the lines of the output without the path."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = TOOLS["main"]([path])
    return code, [line.partition(f"{path.name}:")[2] for line in output.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("line", "idiom"),
    [
        ("The answer stands behind the reasoning.", "behind"),
        ("The user is told which suites were left out.", "told"),
        ("Every mode that goes by the rule is refused.", "goes by"),
        ("It resumes, and went on where it stopped.", "went on"),
        ("Long drafts are in vain.", "in vain"),
        ("Tuning big models is dear.", "dear"),
        ("This mends the cache.", "mends"),
        ("It drafts a token at the least.", "at the least"),
        ("The target gives in to it.", "gives in"),
        ("The engine hands out sessions.", "hands out"),
        ("A draft that has no say.", "has no say"),
        ("The target takes its word back.", "takes its word back"),
        ("The adapter cannot be had.", "be had"),
        ("The file is no model.", "is no model"),
        ("Length: Of the longer of the two prompts.", "Of the longer of the two prompts."),
    ],
)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("comment.py", "x = 1\n# {}\n"),
        ("docstring.py", 'x = 1\n"""{}"""\n'),
        ("formatted.py", 'x = 1\nx = f"{{x}} {}"\n'),
        ("page.md", "# Title\n- {}\n"),
        ("page.js", "let x\n// {}\n"),
        ("text.js", 'let x\nx = "{}"\n'),
        ("comment.toml", "x = 1\n# {}\n"),
        ("description.toml", 'x = 1\ndescription = "{}"\n'),
    ],
)
def test_every_idiom_is_found(tmp_path: Path, name: str, text: str, line: str, idiom: str) -> None:
    path = tmp_path / name
    path.write_text(text.format(line), encoding="utf-8")
    code, (finding,) = run(path)
    assert code == 1
    assert finding.startswith(f"2: {idiom!r}: write ")


def test_what_programs_print_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("# Title\n\n```text\nDear Sam,\n```\n\nThis mends it.\n", encoding="utf-8")
    code, (finding,) = run(path)
    assert code == 1
    assert finding.startswith("7: 'mends': write ")


@pytest.mark.parametrize("mark", ["`", '"'])
def test_what_a_page_quotes_is_not_read(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "page.md"
    quoted = f"{mark}This mends it.{mark}"
    path.write_text(f"# Title\n{quoted} is written as {quoted}\nThis is in vain.\n", "utf-8")
    assert run(path) == (1, ["3: 'in vain': write without effect, or what is lost"])


def test_prompts_and_replies_in_data_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.toml"
    path.write_text('prompts = [\n  "Dear Sam, this mends it.",\n]\n', "utf-8")
    assert run(path) == (0, [])


def test_the_log_and_the_cards_of_adapters_are_read() -> None:
    read = {path.relative_to(TOOL.parents[1]).as_posix() for path in TOOLS["files"]()}
    assert {"docs/log.md", "experts/qwen2.5-coder/README.md", "Makefile"} <= read
    assert "src/safedraft/models/pairs.toml" in read


def test_an_idiom_is_found_across_lines_and_strings(tmp_path: Path) -> None:
    path = tmp_path / "lines.py"
    path.write_text('# at\n# the least\nx = ("in "\n  "vain")\n', encoding="utf-8")
    code, lines = run(path)
    assert code == 1
    assert [line.partition(": write")[0] for line in lines] == ["1: 'at the least'", "3: 'in vain'"]


@pytest.mark.parametrize(
    "line",
    [
        "It runs behind a reverse proxy, or behind an API.",
        "Records that cannot be told apart; the tolden, amended, endearing ones.",
        "Of about 900 requests some are about code. Of 8 sums 6 are right.",
        "Of the requests, most are answered.",
        "At least one and at most two, given in Section 4.",
        "There is no model; its replies are no safer, which is no reason to refuse.",
    ],
)
def test_plain_sentences_pass(tmp_path: Path, line: str) -> None:
    path = tmp_path / "page.md"
    path.write_text(line, encoding="utf-8")
    assert run(path) == (0, [])


def test_names_in_code_pass(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text("behind = told = 1\nprint(behind, told)\n", encoding="utf-8")
    assert run(path) == (0, [])
