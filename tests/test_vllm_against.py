"""The speed of vLLM's engine in two checkouts, without vLLM: scripted packages with clocks."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

PACKAGE = """
import os, time
from types import SimpleNamespace

now = 0
time.perf_counter = lambda: now

def SamplingParams(max_new_tokens):
    return max_new_tokens

def load_pair(max_num_seqs, **_):
    os.write(1, b"loading\\n")  # as compiled libraries do
    return SimpleNamespace(generate_many=generate_many)

def generate_many(asked, sampling):
    global now
    print("decoding")
    now += SECONDS * len(asked)
    return [SimpleNamespace(trace=[token(one[-1]["content"])] * sampling) for one in asked]

def token(text):
    return SimpleNamespace(id=OTHER if "sky" in text else 0)
"""

Package = Callable[..., Path]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("vllm_engine")


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """Write a checkout, whose package takes so long for a reply and has a token for the sky."""

    def write(name: str, seconds: int = 1, other: int = 0) -> Path:
        folder = tmp_path / name
        (folder / "src/safedraft").mkdir(parents=True)
        text = f"SECONDS, OTHER = {seconds}, {other}\n{PACKAGE}"
        (folder / "src/safedraft/__init__.py").write_text(text, encoding="utf-8")
        return folder

    return write


def test_two_checkouts_decode_in_turns(
    script: ModuleType,
    package: Package,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = package("before", seconds=1, other=7)
    monkeypatch.setattr(script, "ROOT", package("now", seconds=4))
    given = ["--many", "1", "4", "--speed-prompts=3", "--rounds=3", "--tokens=5"]
    monkeypatch.setattr(sys, "argv", ["vllm_engine", "--against", str(before), *given])
    script.main()
    measured = json.loads(capsys.readouterr().out)["against"]
    assert measured["reference"] == str(before)
    for many, replies, others in (("1", 9, 3), ("4", 24, 9)):
        assert measured[many] == {
            "tokens_per_second": 1.25,
            "of_reference": 5,
            "ratio": 0.25,
            "lowest_ratio": 0.25,
            "highest_ratio": 0.25,
            "replies": replies,
            "same_replies": replies - others,
        }


def test_each_begins_every_second_turn_and_the_ratio_is_the_median_of_ratios(
    script: ModuleType,
) -> None:
    order = list[str]()

    def engine(name: str, *rates: float) -> Any:
        left = iter([1.0, *rates])

        def decode(asked: list[Any]) -> tuple[list[list[int]], float]:
            order.append(name)
            return [[1]] * len(asked), next(left)

        return decode

    figures = script.in_turns(engine("a", 10, 4, 100), engine("b", 5, 8, 20), [["x"]] * 3, 1)
    assert order == [*"ab", *"ab", *"ba", *"ab"]
    assert (figures["ratio"], figures["lowest_ratio"], figures["highest_ratio"]) == (0.5, 0.2, 2)
    assert (figures["tokens_per_second"], figures["of_reference"]) == (8, 10)
    assert figures["replies"] == figures["same_replies"] == 3


@pytest.mark.parametrize("many", [1, 2, 8, 32])
def test_turns_fill_what_runs_at_a_time(script: ModuleType, many: int) -> None:
    asked = list(range(6))
    turns = script.turns_of(asked, many, 2)
    if many == 1:
        assert turns == [[one] for one in asked] * 2
        return
    assert len(turns) == 2
    for turn in turns:
        assert len(turn) % many == 0
        assert len(turn) - many < 12 <= len(turn)
        assert turn[:12] == asked * 2


def test_as_many_run_as_are_measured_together(script: ModuleType) -> None:
    assert script.options({"eager": True, "many": 32})["max_num_seqs"] == 32
    assert script.options({"eager": True})["max_num_seqs"] == 8


def test_a_folder_without_the_package_is_named(script: ModuleType, tmp_path: Path) -> None:
    with (
        pytest.raises(SystemExit, match=f"{tmp_path} is no checkout"),
        script.checkout(tmp_path, tokens=1),
    ):
        pass


def test_a_process_that_ends_is_reported(script: ModuleType, package: Package) -> None:
    """``load_pair`` of the checkout fails."""
    folder = package("broken")
    with (
        pytest.raises(SystemExit, match=f"the engine of {folder} ended with 1"),
        script.checkout(folder, tokens=1),
    ):
        pass


def test_another_package_than_the_checkout_has_is_refused(
    script: ModuleType, package: Package
) -> None:
    folder = package("empty")
    with (folder / "src/safedraft/__init__.py").open("a", encoding="utf-8") as file:
        file.write("__file__ = '/other/safedraft/__init__.py'\n")
    with (
        pytest.raises(SystemExit, match=f"/other/safedraft was loaded in place of {folder}"),
        script.checkout(folder, tokens=1, max_num_seqs=1),
    ):
        pass
