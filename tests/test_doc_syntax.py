"""Every command of the pages is one that the command line understands, and every table is read.

They are parsed and not run; ``test_doc_commands.py`` runs them.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
from helpers.pages import BY_VLLM, NOT_RUN, PAGES, ROOT, Block, read_blocks

from safedraft.cli import app
from safedraft.cli.options import constants
from safedraft.cli.usage import innermost
from safedraft.core.config import RiskConfig, SamplingParams, SSDConfig
from safedraft.core.request import Request
from safedraft.defenses import find_defense
from safedraft.engines.vllm.batch import ServedRequest
from safedraft.evaluation.judges import JUDGES
from safedraft.evaluation.profiles import find_stages
from safedraft.evaluation.suites import find_suite
from safedraft.models.registry import find_pair
from safedraft.rules import RULES
from safedraft.rules.ssd import SSD
from safedraft.server.settings import Limits
from safedraft.training.config import AdaProbeConfig, RiskTrainingConfig, TrainingConfig

SHELL = [block for page in PAGES for block in read_blocks(page) if block.language != "python"]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_block_has_its_language_and_runs_unless_it_needs_a_hub_or_a_gpu(page: Path) -> None:
    fences = re.findall(r"^ *```(.*)$", page.read_text("utf-8"), re.MULTILINE)
    assert all(fences[::2])
    assert not any(fences[1::2])
    known = re.compile(rf"{NOT_RUN}a (?:hub|GPU) \(.*|{BY_VLLM}|examples/\S+")
    notes = [block.note for block in read_blocks(page) if block.note]
    assert not [note for note in notes if not known.fullmatch(note)]


def understand(words: list[str]) -> None:
    """Parse a command of SafeDraft as its command line does, without running it."""
    command, context, arguments = typer.main.get_command(app), None, words[1:]
    while True:
        settings = command.context_settings
        context = typer.Context(command, parent=context, **settings)  # type: ignore[arg-type]
        groups = getattr(command, "commands", None)
        if not groups or not arguments or arguments[0] not in groups:
            break
        command, arguments = groups[arguments[0]], arguments[1:]
    assert not groups or not arguments or arguments[0].startswith("-"), f"{words}: no such command"
    given, *_ = command.make_parser(context).parse_args(list(arguments))
    if "vllm" not in words:  # whose server has options of its own, which serve accepts as well
        known = {"--help", *(name for parameter in command.params for name in parameter.opts)}
        assert known >= {word.partition("=")[0] for word in arguments if word.startswith("--")}
    kinds = get_type_hints(command.callback)
    for parameter in command.params:
        if parameter.name in given:
            values = given[parameter.name]
            values = values if isinstance(values, list) else [values]
            check_values(words[1], parameter.opts, kinds[parameter.name], values)


PLACEHOLDER = re.compile(r"…|\b[A-Z]{2,}\b")
"""In a value, what a reader puts a word of theirs in place of."""
SETTINGS = {
    "train-draft": TrainingConfig,
    "train-risk": RiskTrainingConfig,
    "train-ada-probe": AdaProbeConfig,
}
"""What the option --set of a command sets, if not the constants of the method."""
FIND = {
    "--defense": find_defense,
    "--judge": JUDGES.find,
    "--profile": find_stages,
    "--rule": RULES.find,
    "--suite": find_suite,
}
"""What finds that which an option names, before a colon and settings of its own."""
EXTENSION = {
    name
    for names in tomllib.loads((ROOT / "examples/extension/pyproject.toml").read_text("utf-8"))[
        "project"
    ]["entry-points"].values()
    for name in names
}
"""The names of the example on the pages about extending SafeDraft."""


def check_values(command: str, names: Sequence[str], kind: Any, written: Sequence[Any]) -> None:
    """Read what an option is given as the command does: numbers, choices, or NAME=VALUE."""
    values = [one for one in written if one is not None and not PLACEHOLDER.search(str(one))]
    single = innermost(kind)
    if single in (int, float) or issubclass(single, Enum):
        for one in values:
            single(one)
    for option in FIND.keys() & {*names}:
        for name in {one.partition(":")[0] for one in values} - EXTENSION:
            FIND[option](name)
    kinds = {"--set": SETTINGS.get(command, RiskConfig), "--max": Limits}
    for option in kinds.keys() & {*names}:
        kinds[option].model_validate(constants(values, kinds[option]))


INLINE = re.compile(rf"`(safedraft [^`]+|(?:{'|'.join(COMMANDS)}) -[^`]+)`")
"""A command inside a sentence, which may leave out the program."""
WITHOUT_LOGS = [page for page in PAGES if page.name not in ("log.md", "CHANGELOG.md")]
"""Pages of now: the commands of a log are those of their time."""


def read_sentences(page: Path) -> str:
    """A page without its blocks."""
    text = page.read_text("utf-8")
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


def list_inline_commands(page: Path) -> list[str]:
    """The commands inside the sentences of a page."""
    return [found.removeprefix("safedraft ") for found in INLINE.findall(read_sentences(page))]


@pytest.mark.parametrize("page", WITHOUT_LOGS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_command_in_a_sentence_is_understood(page: Path) -> None:
    for command in list_inline_commands(page):
        if "COMMAND" not in command:
            understand(["safedraft", *shlex.split(command)])


def list_options(command: Any) -> set[str]:
    """The options of a command, and of those in its group."""
    own = {name for parameter in command.params for name in parameter.opts}
    own |= {name for parameter in command.params for name in parameter.secondary_opts}
    return own.union(*map(list_options, getattr(command, "commands", {}).values()))


@pytest.mark.parametrize("page", WITHOUT_LOGS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_an_option_in_a_sentence_exists(page: Path) -> None:
    if page.name == "vllm.md":
        pytest.skip("it has vLLM's own options too")
    scripts = "".join(file.read_text("utf-8") for file in (ROOT / "benchmarks").glob("*.py"))
    known = list_options(typer.main.get_command(app)) | {*re.findall(r'"(--[a-z-]+)"', scripts)}
    named = re.findall(r"`(--[a-z-]+[a-z])", read_sentences(page))
    assert not {*named} - known - {"--help"}


def test_there_are_commands_in_sentences() -> None:
    found = [one for page in PAGES for one in list_inline_commands(page)]
    assert len(found) > 100


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.name)
def test_a_command_is_understood(block: Block) -> None:
    for words in block.commands:
        match words:
            case ["safedraft", *_]:
                understand(words)
            case ["make", target, *_]:
                makefile = (ROOT / "Makefile").read_text("utf-8")
                assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)
            case ["python", file, *_]:
                assert (ROOT / file).exists()
            case ["pip", "install", "-e", extras]:
                project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
                asked = extras.removeprefix(".[").removesuffix("]").split(",")
                assert {*asked} <= project["optional-dependencies"].keys()
            case _:
                known = {"curl", "export", "inspect"}
                assert words[0] in known or block.note.startswith((NOT_RUN, BY_VLLM))


def test_an_unknown_option_is_not_understood() -> None:
    with pytest.raises(Exception, match="No such option"):
        understand(["safedraft", "generate", "--no-such-option", "Hi"])
    for words in ("serve --no-such-option", "nosuchcommand", "pairs nothing"):
        with pytest.raises(AssertionError):
            understand(["safedraft", *words.split()])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("serve --port many", "invalid literal"),
        ("judge-check --labels nothing", "not a valid"),
        ("serve --max nothing=1", "nothing"),
        ("generate --set alpha_union=many", "valid number"),
        ("train-draft --set alpha_union=2.0", "alpha_union"),
        ("eval --profile nothing", "nothing"),
        ("eval --defense nothing:alpha_union=2.0", "nothing"),
    ],
)
def test_a_wrong_value_is_not_understood(line: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        understand(["safedraft", *line.split()])


TABLE = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?^```(toml|json)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def find_tables(language: str) -> list[tuple[str, str]]:
    """The blocks of that language with their pages; examples are those of ``test_docs.py``."""
    return [
        (page.name, text)
        for page in PAGES
        for note, kind, text in TABLE.findall(page.read_text("utf-8"))
        if kind == language and not note
    ]


@pytest.mark.parametrize(("page", "text"), find_tables("toml"))
def test_a_pair_of_a_page_is_read(
    page: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs/page.toml").write_text(text, "utf-8")
    monkeypatch.setenv("SAFEDRAFT_CONFIG", str(tmp_path))
    for name, table in tomllib.loads(text).items():
        assert find_pair(name).target == table["target"]


def test_the_statistics_of_a_page_are_those_of_vllm() -> None:
    (table,) = [text for _, text in find_tables("json")]
    shown = json.loads(f"{{{table}}}")["kv_transfer_params"]["safedraft"]
    request = Request((), (), SSD(), SSDConfig(), SamplingParams())
    reply = ServedRequest(request, position=48, blocks=19, matches=40, union_tokens=7)
    assert shown == {name: round(figure, 2) for name, figure in reply.statistics().items()}


def test_every_table_of_a_page_is_read() -> None:
    assert sorted(page for page, _ in find_tables("toml")) == ["guide.md", "models.md"]
    assert [page for page, _ in find_tables("json")] == ["vllm.md"]
