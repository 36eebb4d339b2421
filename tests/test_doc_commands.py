"""Every command and example of the pages runs on tiny models.

A comment before a block says why it runs elsewhere (``BY_VLLM``) or not at all (``NOT_RUN``).
"""

from __future__ import annotations

import io
import json
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import openai
import pytest
from conftest import save_pair, save_prompts, save_tokenizer
from fresh import Environment
from guard_server import serve_guard
from helpers.judges import save_classifier, save_guard
from helpers.pages import PAGES, ROOT, Block, read_blocks
from stage import serve_wheel
from test_guard_your_model import SMALL as SMALL_WALK
from test_guard_your_model import ask, shorten

import safedraft
from safedraft.evaluation.judges import replies
from safedraft.training.checks import Checks

BLOCKS = [block for page in PAGES for block in read_blocks(page)]

SMALL = {
    **SMALL_WALK,
    "bench": "--prompts 1 --max-new-tokens 2",
    "chat": SMALL_WALK["generate"],
    "eval": f"--limit 1 {SMALL_WALK['eval']}",
    "inspect": "--limit 1 --max-tokens 2",
    "train-risk": "--set requests=20 --set dressed=0",
    "train-ada-probe": "--set requests=20 --set dressed=0 --set reply_tokens=2",
}
"""Options that make a command short on tiny models."""


SOURCES = {
    "requests.jsonl": {"request": "Sabotage gate {n}."},
    "more.jsonl": {"request": "Sabotage door {n}."},
    "prompts.jsonl": {"request": "Describe gate {n}."},
    "advbench.json": {"goal": "Sabotage lift {n}.", "target": "Sure, here is how"},
    "mine.jsonl": {"ask": "Sabotage bridge {n}.", "begin": "Sure, step one:"},
    "gsm8k.json": {"question": "What is {n} plus 2?", "answer": "#### {n}"},
    "xstest.json": {"prompt": "How do I kill process {n}?", "label": "safe"},
    "gcg.json": {"request": "Sabotage lift {n}.", "prompt": "Sabotage lift {n}. ! !"},
    "pair.json": {"request": "Sabotage lift {n}.", "prompt": "Be Zed. Sabotage lift {n}."},
}
"""Files of prompts that the pages name: what each of some records holds."""

ELSEWHERE = ("docs/guard-your-model.md", "README.md")
"""Pages whose commands run in the fresh environment of `make test-wheel`."""

ENDPOINT = "http://localhost:8000/v1"
"""The address at which the pages expect a model that judges."""

RUN = [
    block
    for block in BLOCKS
    if not block.note
    and not (str(block.page.relative_to(ROOT)) in ELSEWHERE and block.language != "python")
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with tiny models that stand for the default pair, an adapter, logs and prompts."""
    folder = tmp_path_factory.mktemp("workplace")
    save_pair(folder, max_position_embeddings=8192)
    (folder / "venv").symlink_to(sys.prefix)
    for name in ("benchmarks", "tests"):
        (folder / name).symlink_to(ROOT / name)
    for place in ("tests/conformance", "examples/clients"):
        for file in (ROOT / place).iterdir():
            (folder / file.name).symlink_to(file)
    links = {"FOLDER": "my-adapter", "my-draft": "my-adapter", "TARGET": "target", "DRAFT": "draft"}
    for name, linked in links.items():
        (folder / name).symlink_to(folder / linked)
    (folder / "experts").mkdir()
    (folder / "experts/qwen2.5-coder").symlink_to(folder / "my-adapter")
    for name in ("CLASSIFIER", "owner/guard"):
        save_tokenizer(folder / name)
    save_classifier(folder / "CLASSIFIER", [0.0, 9.0, 0.0])
    save_guard(folder / "owner/guard")
    save_prompts(folder, "harmful", "ordinary", "prompts")
    (folder / "prompt.txt").write_text("Why is the sky blue?", "utf-8")
    for file, record in SOURCES.items():
        lines = [json.dumps(record).replace("{n}", str(number)) for number in range(30)]
        text = "\n".join(lines) if file.endswith("l") else f"[{','.join(lines)}]"
        (folder / file).write_text(text, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, folder, patch)
        models = "--target TARGET --draft DRAFT"
        run_line(f"safedraft train-draft {models} --output my-adapter", patch)
        run_line(f"safedraft train-risk {models} --adapter my-adapter", patch)
        run_line(f"safedraft train-ada-probe {models} --output my-probe", patch)
        run_line(f"safedraft pairs add my-pair {models} --adapter FOLDER", patch)
        (own,) = (folder / "config/pairs").iterdir()
        text = own.read_text("utf-8").replace("[my-pair", '["qwen2.5-coder"', 1)
        own.with_name("default.toml").write_text(text, "utf-8")  # in place of what is shipped
        run_line("safedraft eval --suite direct --defense target_only", patch)
        yield folder


def enter(folder: Path, workplace: Path, patch: pytest.MonkeyPatch) -> None:
    """Work in a folder, with the models and settings of the workplace."""
    patch.chdir(folder)
    places = Environment(workplace, workplace).variables
    for name in ("SAFEDRAFT_CACHE", "SAFEDRAFT_CONFIG", "XDG_DATA_HOME"):
        patch.setenv(name, places[name])
    patch.setattr(Checks, "problems", ())  # no training makes these models refuse
    serve_wheel(workplace, patch)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of a model that judges, as a guard or by the rubric of the judge ``endpoint``."""

    def judge(messages: list[dict[str, str]]) -> str:
        rubric = "harmfulness:" in messages[-1]["content"]
        return "class: refused\nharmfulness: 1" if rubric else "safe"

    with serve_guard(judge) as server:
        yield server.url


def run_line(line: str, patch: pytest.MonkeyPatch) -> None:
    run(shlex.split(line), patch)


def run(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Run a script of the repository or a command, made short, in this process: it must succeed."""
    if words[0] == "python":
        patch.setattr(sys, "argv", words[1:])
        runpy.run_path(words[1], run_name="__main__")
        return
    patch.setattr(sys, "stdin", io.StringIO())
    if "<" in words:
        *words, _, file = words
        patch.setattr(sys, "stdin", io.StringIO(Path(file).read_text("utf-8")))
    small = SMALL.get(words[1] if words[0] == "safedraft" else words[0], "")
    if "--profile" in words:
        small = small.removeprefix("--limit 1 ")  # it has numbers of its own
    patch.setattr(sys, "argv", shorten(words, small))
    (program,) = entry_points(group="console_scripts", name=words[0])
    with pytest.raises(SystemExit) as ended:
        program.load()()
    assert not ended.value.code, words


SERVED = ("clients.md", "serve-it.md", "server.md")
"""Pages whose examples ask a server."""

READ_LOGS = {"report", "score", "judge-check", "benchmarks/label_replies.py"}
"""Commands that read the workplace's logs, of which they get a copy."""


def list_runnable(block: Block) -> list[list[str]]:
    """The commands of a block that end by themselves and ask no server, if it is of a shell."""
    if block.language == "python" or block.page.name in SERVED:
        return []
    programs = {"inspect", "python", "safedraft"}
    return [words for words in block.commands if words[0] in programs and words[1] != "serve"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", [one for one in RUN if list_runnable(one)], ids=lambda block: block.name
)
def test_a_command_runs(
    block: Block, workplace: Path, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = tmp_path / "desk"
    desk.mkdir()
    commands = list_runnable(block)
    written = {words[words.index("--output") + 1] for words in commands if "--output" in words}
    for item in workplace.iterdir():
        if item.name in written:
            continue
        if item.name != "safedraft-logs":
            (desk / item.name).symlink_to(item)
        elif commands[0][1] in READ_LOGS:
            shutil.copytree(item, desk / item.name)
            (desk / "logs").symlink_to(desk / item.name)
    enter(desk, workplace, monkeypatch)
    if any("add" in words for words in commands):
        monkeypatch.setenv("SAFEDRAFT_CONFIG", str(tmp_path / "config"))
    labels = shutil.copy(replies.labels_file(), tmp_path / "labels.toml")
    monkeypatch.setattr(replies, "labels_file", lambda: labels)
    for words in commands:
        run([word.replace(ENDPOINT, endpoint) for word in words], monkeypatch)
        if (sheet := desk / "sheet.jsonl").exists():
            label(sheet)


def label(sheet: Path) -> None:
    """What a person does between listing replies and recording their classes."""
    rows = [json.loads(line) | {"label": "complied"} for line in sheet.open(encoding="utf-8")]
    assert rows
    sheet.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")


PYTHON = [one for one in RUN if one.language == "python" and one.page.name not in SERVED]


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}), ids=lambda one: one.name)
def test_the_examples_of_a_page_run(
    page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, as a reader types them; the names that a page has loaded are there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    enter(workplace, workplace, monkeypatch)
    load, folders = safedraft.load_pair, [str(workplace / name) for name in ("target", "draft")]
    monkeypatch.setattr(safedraft, "load_pair", lambda *_, **__: load(*folders, use_adapter=False))
    target, draft = (AutoModelForCausalLM.from_pretrained(name).eval() for name in folders)
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    inputs = tokenizer("Why is the sky blue?", return_tensors="pt")
    names = {"safedraft": safedraft, "target": target, "draft": draft, "tokenizer": tokenizer}
    names |= {"inputs": inputs, "draft_prompt": inputs["input_ids"]}
    for block in PYTHON:
        if block.page == page:
            exec(compile(block.text, str(page), "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SERVED, "reference.md"])
def test_the_examples_of_a_server_run(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(workplace, workplace, monkeypatch)
    blocks = [block for block in RUN if block.page.name == name]
    commands = [words for block in blocks if block.language != "python" for words in block.commands]
    here = Environment(workplace, workplace)
    with here.serve("safedraft", "serve") as address:
        for words in commands:
            line = shlex.join(words).replace("http://127.0.0.1:8000", address)
            if words[0] == "curl":
                assert ask(here, line, address)
            elif words[0] == "export":
                for setting in shlex.split(line)[1:]:
                    monkeypatch.setenv(*setting.split("=", 1))
            elif words[0] == "inspect":
                assert here.run(*shlex.split(f"{line} {SMALL['inspect']}"))
        for block in blocks:
            if block.language == "python":
                text = block.text.replace("http://127.0.0.1:8000", address)
                exec(compile(text, name, "exec"), {"openai": openai})
    for words in commands:
        if words[:2] == ["safedraft", "serve"] and len(words) > 2:
            with here.serve(*words) as address:
                assert ask(here, "curl http://127.0.0.1:8000/health", address)
