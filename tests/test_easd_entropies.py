"""The script that says how often EASD's trigger fires, on tiny models."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

import safedraft
from safedraft.rules.easd import EASDConfig

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("easd_entropies")


@pytest.mark.parametrize(
    ("threshold", "tokens", "overlap"), [(2.0, 10, 0.6), (1.0, 5, 0.8), (3.0, 40, 0.7)]
)
def test_the_trigger_is_that_of_the_rule(
    script: ModuleType, tiny: str, threshold: float, tokens: int, overlap: float
) -> None:
    pair = safedraft.load_pair(tiny, engine="transformers", dtype="float32")
    config = EASDConfig(
        entropy_threshold=threshold, overlap_tokens=tokens, overlap_threshold=overlap
    )
    result = pair.generate("Why?", rule="easd", config=config, max_new_tokens=40)
    ids = [token.id for token in result.trace]
    positions = script.read_positions(pair, pair.prompts("Why?"), ids, tokens)
    share = script.penalized_share(positions, threshold, overlap * tokens)
    assert share * len(ids) == pytest.approx(result.statistics.signals)
    assert 0 < share < 1


def test_tables_on_tiny_models(
    script: ModuleType,
    tiny: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = {"sums": ["1+1?", "2+2?"], script.REFUSALS: ["refused", "answered"]}
    monkeypatch.setattr(script, "read_prompts", lambda limit: prompts)
    refused = iter([True, False])
    monkeypatch.setattr(script, "is_refusal", lambda text: next(refused))
    given = ["--pair", tiny, "--engine=transformers", "--limit=2", "--tokens=6"]
    monkeypatch.setattr(sys, "argv", ["easd_entropies", *given])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["H(P),", "H(q),", "the", "tokens"]
    assert "of which 1 are refusals of 2 harmful requests" in lines[-2] + lines[-1]
    counts = {line.split("  ")[0]: line.split()[3] for line in lines[6:14]}
    assert list(counts) == [
        *(f"all, overlap {share:g}" for share in script.OVERLAPS),
        "sums, overlap 0.5",
        "refusals, overlap 0.5",
    ]
    assert list(counts.values()) == ["18"] * 6 + ["12", "6"]


def test_prompts_are_of_the_calibration_half(script: ModuleType) -> None:
    prompts = script.read_prompts(2)
    assert {"sums", script.REFUSALS} < set(prompts)
    assert {len(texts) for texts in prompts.values()} == {2}
