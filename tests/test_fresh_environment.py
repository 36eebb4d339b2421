"""The built wheel in a fresh environment: what runs without any extra, then with each.

`make test-wheel` runs these tests in their order, since each extra is added to those before.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen
from zipfile import ZipFile

import pytest
import torch
from conftest import save_prompts
from fresh import ROOT, Environment, find_distribution
from helpers.gguf import make, write_gguf
from helpers.pages import read_blocks
from peft import LoraConfig, get_peft_model
from test_guard_your_model import SMALL, shorten
from test_startup import COMMANDS, measure_seconds

from safedraft.core.risk import RiskProbe
from safedraft.models.fingerprint import FACTS, AdapterFacts, fingerprint
from safedraft.models.probe_file import ProbeFile, write_probe

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(600)]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NO_TINY_MODELS = {"vllm", "clients", "docs", "dev"}
"""Extras for developers, and of an environment of their own."""
WITH_AN_EXTRA = {"serve", "train-draft", "report"}
"""Commands of the README that run once their extra is installed."""
ON_ITS_OWN_PAGE = {"eval"}
"""Commands of the README that the walk of docs/guard-your-model.md runs."""


@pytest.fixture(scope="module")
def models(tiny_pair: tuple[Path, Path]) -> list[str]:
    return ["--target", str(tiny_pair[0]), "--draft", str(tiny_pair[1]), "--no-adapter"]


@contextmanager
def replace_the_default_pair(environment: Environment, models: list[str]) -> Iterator[None]:
    """Let the tiny models take the place of the default pair."""
    _, target, _, draft, _ = models
    file = environment.folder / "config/pairs/tiny.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f'["qwen2.5-coder"]\ntarget = "{target}"\ndraft = "{draft}"\nbare_draft = true\n'
    )
    try:
        yield
    finally:
        file.unlink()


def list_readme(models: list[str]) -> list[list[str]]:
    """The commands of SafeDraft in the README, with the tiny models as TARGET and DRAFT."""
    _, target, _, draft, _ = models
    words = {"TARGET": target, "DRAFT": draft}
    return [
        [words.get(word, word) for word in command]
        for block in read_blocks(ROOT / "README.md")
        if block.language != "python"
        for command in block.commands
        if command[0] == "safedraft"
    ]


def find_readme(name: str, models: list[str]) -> list[str]:
    """The README's command of that name, with options that make it short."""
    (command,) = (words for words in list_readme(models) if words[1] == name)
    return shorten(command, SMALL.get(name, ""))


def list_files(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_has_every_file_of_the_package() -> None:
    sources = {ROOT / "src/safedraft": "safedraft", ROOT / "experts": "safedraft/experts"}
    expected = {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for folder, name in sources.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    files = {name for name in list_files(find_distribution("*.whl")) if ".dist-info/" not in name}
    assert files == expected


def test_the_source_distribution_makes_the_same_wheel(tmp_path: Path) -> None:
    archive = find_distribution("*.tar.gz")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", tmp_path, archive], check=True)
    (built,) = tmp_path.glob("*.whl")
    assert list_files(built) == list_files(find_distribution("*.whl"))
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    kept = {"LICENSE", "pyproject.toml", "tests/conftest.py", "docs/guide.md"}
    assert kept | {"benchmarks/server.py", "docker/compose.yaml", "constraints-vllm.txt"} <= names


@pytest.mark.parametrize("name", COMMANDS)
def test_it_starts_in_half_a_second(fresh_environment: Environment, name: str) -> None:
    command = fresh_environment.locate("python", *COMMANDS[name])
    place = {"cwd": fresh_environment.work, "env": fresh_environment.variables}
    assert min(measure_seconds(command, **place) for _ in range(3)) < 0.5


def test_the_command_is_that_of_the_wheel(fresh_environment: Environment) -> None:
    version = fresh_environment.run("safedraft", "--version")
    assert version == f"safedraft {PROJECT['version']}\n"
    place = fresh_environment.run("python", "-c", "import safedraft; print(safedraft.__file__)")
    assert place.startswith(str(fresh_environment.folder))


def test_the_default_pair_has_its_adapter(fresh_environment: Environment) -> None:
    pair = json.loads(fresh_environment.run("safedraft", "pairs", "--json"))["qwen2.5-coder"]
    code = "from safedraft.models.registry import shipped_adapters; print(shipped_adapters())"
    assert f"'{pair['adapter']}': PosixPath('{fresh_environment.folder}" in (
        fresh_environment.run("python", "-c", code)
    )


def test_two_models_decode_without_any_extra(
    fresh_environment: Environment, models: list[str]
) -> None:
    _, target, _, draft, _ = models
    assert "can decode together" in fresh_environment.run("safedraft", "doctor", target, draft)
    options = ["--max-new-tokens", "4", "--json", "Hello"]
    reply = fresh_environment.start("safedraft", "generate", *models, *options)
    assert json.loads(reply.stdout)["statistics"]["tokens"] > 0


@pytest.mark.parametrize(
    ("extra", "command", "named"),
    [
        ("cpu", "generate Hello --engine cpu", 5),
        ("structured", "generate Hello --json-schema schema.json", 5),
        ("server", "serve", 5),
        ("train", "train-draft --output adapter", 4),  # it takes no --no-adapter
        ("eval", "eval --list", 0),
    ],
)
def test_a_missing_extra_is_named(
    fresh_environment: Environment, models: list[str], extra: str, command: str, named: int
) -> None:
    (fresh_environment.work / "schema.json").write_text('{"enum": ["yes", "no"]}')
    done = fresh_environment.start("safedraft", *command.split(), *models[:named])
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 2, done.stdout
    assert error.startswith("error: ")
    assert f"pip install 'safedraft[{extra}]'" in error


def test_two_gguf_files_an_adapter_and_a_probe_run_without_any_extra(
    fresh_environment: Environment, tmp_path: Path
) -> None:
    model = make("qwen2")
    files = [tmp_path / "target.gguf", tmp_path / "draft.gguf"]
    for file in files:
        write_gguf(file, model, "qwen2")
    adapter = tmp_path / "adapter"
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(adapter)
    facts = AdapterFacts(base=fingerprint(files[1]), target="", versions={})
    (adapter / FACTS).write_text(facts.model_dump_json())
    write_probe(adapter, ProbeFile(RiskProbe(torch.zeros(model.config.hidden_size), 0.0)))
    assert fresh_environment.start("python", "-c", "import numba").returncode
    options = ["--target", files[0], "--draft", files[1], "--adapter", adapter, "--json"]
    done = fresh_environment.start("safedraft", "generate", *options, "--max-new-tokens", 4, "Hi")
    reply = json.loads(done.stdout)
    assert reply["statistics"]["tokens"] > 0
    assert reply["statistics"]["risk"] == 0.5  # of a probe of zeros
    assert reply["warnings"] == []


def test_the_commands_of_the_readme_run(fresh_environment: Environment, models: list[str]) -> None:
    names = set()
    with replace_the_default_pair(fresh_environment, models):
        for command in list_readme(models):
            if (name := command[1]) in WITH_AN_EXTRA | ON_ITS_OWN_PAGE:
                continue
            names.add(name)
            small = "--max-new-tokens 4" if name in ("generate", "chat") else ""
            done = fresh_environment.start(*shorten(command, small), said="Hello\n/quit\n")
            assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert {"generate", "chat", "doctor"} <= names


def run_cpu(environment: Environment, models: list[str]) -> None:
    _, target, _, draft, _ = models
    load = f"safedraft.load_pair({target!r}, {draft!r}, use_adapter=False)"
    code = f"import safedraft; pair = {load}; pair.generate('Hi'); print(pair.engine.name)"
    assert environment.run("python", "-c", code) == "cpu\n"


def run_structured(environment: Environment, models: list[str]) -> None:
    schema = ["--json-schema", "schema.json"]
    reply = environment.start("safedraft", "generate", "Hello", *schema, *models)
    assert json.loads(reply.stdout) in ("yes", "no"), reply.stderr


def run_server(environment: Environment, models: list[str]) -> None:
    message = {"role": "user", "content": "Hello"}
    body = {"model": "qwen2.5-coder", "messages": [message], "max_tokens": 4}
    command = find_readme("serve", models)
    with (
        replace_the_default_pair(environment, models),
        environment.serve(*command) as address,
    ):
        health = json.load(urlopen(f"{address}/health", timeout=60))
        page = urlopen(f"{address}/playground/", timeout=60).read().decode()
        request = Request(f"{address}/v1/chat/completions", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        reply = json.load(urlopen(request, timeout=60))
    assert health["status"] == "ok"
    assert "--playground" in command
    assert "<title>SafeDraft" in page
    assert reply["choices"][0]["message"]["role"] == "assistant"


def run_train(environment: Environment, models: list[str]) -> None:
    save_prompts(environment.work)
    environment.run(*find_readme("train-draft", models))
    assert (environment.work / "FOLDER/adapter_model.safetensors").is_file()
    (block,) = (one for one in read_blocks(ROOT / "README.md") if one.language == "python")
    words = {
        "owner/big-instruct": models[1],
        "owner/small-instruct": models[3],
        "path/of/train-draft's/output": "FOLDER",
    }
    code = block.text
    for written, own in words.items():
        assert written in code
        code = code.replace(written, own)
    said = environment.start("python", "-c", code + "\nprint(lossless.finish_reason)")
    assert said.stdout.endswith(("stop\n", "length\n")), said.stderr


def run_eval(environment: Environment, models: list[str]) -> None:
    assert "jbb" in environment.run("safedraft", "eval", "--list")
    options = "--defense ssd --suite ordinary --limit 1 --max-new-tokens 2"
    environment.run("safedraft", "eval", *models, *options.split())
    assert list((environment.work / "safedraft-logs").glob("*.eval"))
    environment.run(*find_readme("report", models))
    assert (environment.work / "report/report.html").is_file()
    for made in ("safedraft-logs", "report"):  # another page's walk makes its own here
        shutil.rmtree(environment.work / made)


EXTRAS: dict[str, Callable[[Environment, list[str]], None]] = {
    "cpu": run_cpu,
    "structured": run_structured,
    "server": run_server,
    "train": run_train,
    "eval": run_eval,
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_what_its_commands_need(
    fresh_environment: Environment, models: list[str], extra: str
) -> None:
    fresh_environment.install(extra)
    EXTRAS[extra](fresh_environment, models)


def test_every_extra_of_users_has_a_test() -> None:
    assert EXTRAS.keys() == PROJECT["optional-dependencies"].keys() - NO_TINY_MODELS
