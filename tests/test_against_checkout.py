"""The comparison with another checkout: both are this one, with tiny models."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The comparison, which does not wait."""
    module = importlib.import_module("against_checkout")
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    return module


class Scripted:
    """A checkout that takes so many seconds for two tokens, or for others in its second reply."""

    def __init__(self, name: str, seconds: float, asked: list[str], second: list[int]) -> None:
        self.name, self.seconds, self.asked = name, seconds, asked
        self.replies = itertools.cycle([[1, 2], second])

    def ask(self, prompt: str, tokens: int) -> dict[str, Any]:
        self.asked.append(f"{prompt} {self.name}")
        ids = next(self.replies)
        return {"seconds": self.seconds, "first": self.seconds / 2, "passes": 1, "ids": ids}


@pytest.mark.timeout(400)
@pytest.mark.slow
def test_a_checkout_beside_itself(
    script: ModuleType,
    tiny: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # models are tiny: threads only wait for each other
    given = [str(ROOT), "--pair", tiny, "--rounds=2", "--prompts=1", "--tokens=4"]
    monkeypatch.setattr(sys, "argv", ["against_checkout", *given])
    script.main()
    shown = capsys.readouterr().out
    assert "2 ratios of tokens/s" in shown
    assert "2 of 2 replies have the same tokens" in shown
    assert '"draft_tokens": 4' in shown
    assert shown.count("torch 2") == 2


def test_the_first_to_answer_alternates_in_prompts_and_rounds(script: ModuleType) -> None:
    asked: list[str] = []
    children = [Scripted(name, 1.0, asked, [1, 2]) for name in ("other", "this")]
    assert len(list(script.measure(*children, ["a", "b"], 2, 2))) == 4
    firsts = asked[2::2]  # after a warm-up of each
    assert firsts == ["a other", "b this", "a this", "b other"]


def test_ratios_are_to_the_other_checkout(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    children = Scripted("other", 1.0, [], [1, 2]), Scripted("this", 0.5, [], [1, 3])
    turns = list(script.measure(*children, ["a", "b"], 1, 2))
    Console(width=120).print(script.tabulate(turns, {"other": "old", "this": "new"}))
    old, new = (line.split() for line in capsys.readouterr().out.splitlines()[-2:])
    assert old == ["old", "2.00", "1.00", "0.50", "1.00", "2.00"]
    assert new == ["new", "4.00", "2.00", "0.25", "0.50", "2.00"]
    assert script.summarize(turns).startswith(
        "2 ratios of tokens/s, from 2.00 to 2.00; 1 of 2 replies have the same tokens in both"
    )


def test_a_checkout_without_rules_knows_ssd_alone() -> None:
    worker = importlib.import_module("checkout_worker")
    old = SimpleNamespace(generate=lambda prompt, *, sampling=None: None)
    new = SimpleNamespace(generate=lambda prompt, *, rule=None: None)
    assert worker.choose_rule(old, "ssd") == {}
    assert worker.choose_rule(new, "ssd") == {"rule": "ssd"}
    with pytest.raises(SystemExit, match="no rules but ssd"):
        worker.choose_rule(old, "speculative")


def test_a_folder_without_safedraft_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = importlib.import_module("checkout_worker")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit, match="has no SafeDraft in src"):
        worker.load(tmp_path, {})
