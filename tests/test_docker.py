"""What can be checked of ``docker/`` without Docker: files, commands, options and names exist."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch

import pytest
from images import COMPOSE, ROOT, command_of, instructions, parse

from safedraft.engines.vllm.hooks import RUN
from safedraft.models.registry import find_pair
from safedraft.server.settings import API_KEY

SERVICES = sorted(COMPOSE["services"])


@pytest.mark.parametrize("service", SERVICES)
def test_what_is_copied_is_here_and_not_ignored(service: str) -> None:
    kept = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    ]
    assert all((ROOT / path).exists() for path in kept)
    copied = [
        path for name, rest in instructions(service) if name == "COPY" for path in rest.split()[:-1]
    ]
    assert {"pyproject.toml", "src", "experts"} <= set(copied)
    for path in copied:
        assert (ROOT / path).exists()
        assert any(fnmatch(path, one) for one in kept)


@pytest.mark.parametrize("service", SERVICES)
def test_what_is_installed_is_named_in_the_project(service: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (run,) = [rest for name, rest in instructions(service) if name == "RUN"]
    copied = " ".join(rest for name, rest in instructions(service) if name == "COPY")
    for extras in re.findall(r"\.\[([\w,]+)\]", run):
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    for file in re.findall(r"\b[\w/]+\.(?:py|txt)\b", run):
        assert file in copied


@pytest.mark.parametrize("service", SERVICES)
def test_it_runs_a_registered_pair_behind_a_key(service: str) -> None:
    options, others = parse(service)
    assert find_pair(options["named"]).adapter
    assert (options["host"], options["port"]) == ("0.0.0.0", 8000)
    assert (options["engine"] == "vllm") is (service == "cuda")
    assert bool(others) is (service == "cuda")  # SafeDraft's own server knows all its options
    settings = COMPOSE["services"][service]
    assert re.match(rf"\$\{{{API_KEY}:\?", settings["environment"][API_KEY])
    assert settings["ports"] == ["127.0.0.1:8000:8000"]
    assert "8000/health'" in settings["healthcheck"]["test"][-1]
    (volume,) = settings["volumes"]
    folder = volume.partition(":")[2]
    variables = " ".join(rest for name, rest in instructions(service) if name == "ENV")
    assert f"SAFEDRAFT_CACHE={folder}/" in variables


def test_the_image_has_a_vllm_with_which_the_engine_ran() -> None:
    assert ("FROM", f"vllm/vllm-openai:v{RUN[-1]}") in instructions("cuda")


def test_an_option_that_nobody_knows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMPOSE["services"]["cpu"], "command", ["qwen2.5-coder", "--limits", "1"])
    assert command_of("cpu")[-2:] == ["--limits", "1"]
    assert parse("cpu")[1] == ["--limits", "1"]
