"""The built wheel in a fresh environment: what runs without any extra, then with each.

`make test-wheel` runs these tests in their order, since each extra is added to those before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen
from zipfile import ZipFile

import pytest
from conftest import save_prompts
from fresh import ROOT, Environment, find_distribution
from helpers.pages import read_blocks
from test_startup import COMMANDS, measure_seconds

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(600)]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NO_TINY_MODELS = {"vllm", "clients", "docs", "dev"}
"""Extras for developers, and of an environment of their own."""
ON_ITS_OWN_PAGE = {"eval", "report", "calibrate", "train-draft", "serve"}
"""Commands of the README that the walk of docs/guard-your-model.md runs."""


@pytest.fixture(scope="module")
def models(tiny_pair: tuple[Path, Path]) -> list[str]:
    return ["--target", str(tiny_pair[0]), "--draft", str(tiny_pair[1]), "--no-adapter"]


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


def test_the_commands_of_the_readme_run(fresh_environment: Environment, models: list[str]) -> None:
    _, target, _, draft, _ = models
    pairs = fresh_environment.folder / "config/pairs"
    pairs.mkdir(parents=True)
    pair = f'["qwen2.5-coder"]\ntarget = "{target}"\ndraft = "{draft}"\nbare_draft = true\n'
    (pairs / "tiny.toml").write_text(pair)  # it takes the place of the default pair
    words = {"TARGET": target, "DRAFT": draft}
    small = {name: ["--max-new-tokens", "4"] for name in ("generate", "chat")}
    blocks = [block for block in read_blocks(ROOT / "README.md") if block.language != "python"]
    commands = [words for block in blocks for words in block.commands]
    names = set()
    for command in commands:
        if command[0] != "safedraft" or command[1] in ON_ITS_OWN_PAGE:
            continue
        names.add(command[1])
        chosen = [words.get(word, word) for word in command] + small.get(command[1], [])
        done = fresh_environment.start(*chosen, said="Hello\n/quit\n")
        assert done.returncode == 0, (chosen, done.stdout, done.stderr)
    (pairs / "tiny.toml").unlink()
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
    body = {"model": "tiny", "messages": [message], "max_tokens": 4}
    with environment.serve("safedraft", "serve", "--served-model-name", "tiny", *models) as address:
        health = json.load(urlopen(f"{address}/health", timeout=60))
        request = Request(f"{address}/v1/chat/completions", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        reply = json.load(urlopen(request, timeout=60))
    assert health["status"] == "ok"
    assert reply["choices"][0]["message"]["role"] == "assistant"


def run_train(environment: Environment, models: list[str]) -> None:
    save_prompts(environment.work)
    options = (
        "--harmful harmful.txt --ordinary ordinary.txt --steps 1 --rank 2 --no-risk "
        "--set answer_tokens=4 --set beginning_tokens=4 --set dressed=0 --output adapter"
    )
    environment.run("safedraft", "train-draft", *models[:4], *options.split())
    assert (environment.work / "adapter/adapter_model.safetensors").is_file()


def run_eval(environment: Environment, models: list[str]) -> None:
    assert "jbb" in environment.run("safedraft", "eval", "--list")
    options = "--defense ssd --suite ordinary --limit 1 --max-new-tokens 2 --log-dir logs"
    environment.run("safedraft", "eval", *models, *options.split())
    assert list((environment.work / "logs").glob("*.eval"))


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
