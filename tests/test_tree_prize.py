"""The scripts that measure trees, whole, on tiny models."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

import safedraft
from safedraft.evaluation.trees.tune import CHAINS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.slow
def test_the_probe_on_tiny_models(
    tiny: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = importlib.import_module("tree_prize")
    monkeypatch.setattr(script, "GROWN", script.GROWN[::9])
    monkeypatch.setattr("safedraft.evaluation.trees.tune.CHAINS", CHAINS[::9])
    output = tmp_path / "out" / "prize.json"
    arguments = {"pair": tiny, "engine": "transformers", "limit": 2, "tokens": 12, "rounds": 1}
    given = [f"--{name}={value}" for name, value in {**arguments, "output": output}.items()]
    monkeypatch.setattr(sys, "argv", ["tree_prize", *given])
    script.main()
    outcome = json.loads(output.read_text(encoding="utf-8"))
    assert [(way["rule"], way["temperature"]) for way in outcome["ways"]] == [
        ("ssd", 0.0),
        ("ssd", 1.0),
        ("speculative", 0.0),
        ("speculative", 1.0),
    ]
    assert len(outcome["times_ms"]["target"]) == 64
    assert len(outcome["times_ms"]["draft"]) == 16
    for way in outcome["ways"]:
        check = way["check"]
        assert check["proposals_that_agree"] == 1
        assert check["tokens_per_target_pass"] == check["decoded_tokens_per_target_pass"]
        assert {row["kind"] for row in way["acceptance"]} >= {"sums", "prose", "code", "chat"}
        for row in way["acceptance"]:
            assert 0 < sum(row["shares"]) <= 1 + 1e-9
        assert list(way["machines"]) == ["measured", "c = 0.05", "c = 0.15", "c = 0.3"]
    logged = [position for reply in outcome["replies"] for position in reply["positions"]]
    assert len(logged) == sum(way["tokens"] for way in outcome["ways"])
    assert "content" not in output.read_text(encoding="utf-8")
    assert "Gain over the pair's chain" in capsys.readouterr().out


def test_shapes_are_measured_beside_each_other(
    tiny_pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    script = importlib.import_module("tree_speed")
    models = map(str, tiny_pair)
    pair = safedraft.load_pair(*models, use_adapter=False, engine="transformers", dtype="float32")
    totals = script.measure(pair, ["hi", "why?"], tokens=9)
    assert {name: total.equal for name, total in totals.items()} == dict.fromkeys(script.SHAPES, 2)
    assert len({total.tokens for total in totals.values()}) == 1
    script.show(script.Console(width=140), totals, 2)
    assert capsys.readouterr().out.count("2 of 2") == 4


def test_one_prompt_cannot_be_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module("tree_prize")
    monkeypatch.setattr(sys, "argv", ["tree_prize", "--limit", "1"])
    with pytest.raises(SystemExit):
        script.main()
