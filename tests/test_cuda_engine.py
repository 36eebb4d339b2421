"""The checks for accelerators, on a processor with tiny models: they pass, and they can fail."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import a script of ``benchmarks`` as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def bench(load: Callable[[str], Any]) -> Any:
    models = load("cuda_models")
    return models.Bench(torch.device("cpu"), ("tiny", "tiny"), None, models.WORKLOADS["small"])


def run(load: Callable[[str], Any], bench: Any, name: str) -> dict[str, Any]:
    engine = load("cuda_engine")
    (check,) = [check for check in engine.CHECKS if check.name == name]
    return engine.run_check(check, bench)


def test_every_check_passes_on_a_processor(load: Callable[[str], Any], tmp_path: Path) -> None:
    engine = load("cuda_engine")
    file = tmp_path / "figures.json"
    assert engine.main(["--device", "cpu", "--json", str(file)]) == 0
    results = json.loads(file.read_text("utf-8"))
    assert [*results["checks"]] == [check.name for check in engine.CHECKS]
    figures = {name: check["figures"] for name, check in results["checks"].items()}
    assert figures["recorded"]["identical"] == figures["recorded"]["cases"] == 6
    assert figures["mixed"]["float32"] == {"equal": 6, "requests": 6}
    assert figures["parts"]["agreement 1, ssd, 3 drafted"]["accepted"] == 1
    assert figures["parts"]["agreement 0, ssd, 3 drafted"]["accepted"] < 0.5
    assert len(figures["training"]["losses"]) == 10


def test_a_check_that_raises_or_takes_too_long_stops_no_other(
    load: Callable[[str], Any], bench: Any, tmp_path: Path
) -> None:
    engine = load("cuda_engine")

    def fail(bench: Any, outcome: Any) -> None:
        outcome.figures["before"] = 1
        raise ZeroDivisionError("no number")

    def wait(bench: Any, outcome: Any) -> None:
        while True:
            pass

    checks = [
        engine.Check("fails", fail, 60),
        engine.Check("waits", wait, 0.01),
        engine.Check("passes", lambda bench, outcome: None, 60),
    ]
    file = tmp_path / "figures.json"
    results = engine.run_checks(checks, bench, file)["checks"]
    assert results["fails"]["failures"] == ["ZeroDivisionError: no number"]
    assert results["fails"]["figures"] == {"before": 1}
    assert results["waits"]["failures"][0].startswith("TimeLimitError")
    assert [check["passed"] for check in results.values()] == [False, False, True]
    assert json.loads(file.read_text("utf-8"))["checks"] == results


def test_the_exit_code_is_one_after_a_failure(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load("cuda_engine")
    failing = engine.Check("fails", lambda bench, outcome: outcome.require(False, "broken"), 60)
    monkeypatch.setattr(engine, "CHECKS", (failing,))
    assert engine.main(["--device", "cpu"]) == 1


def test_another_token_than_the_recorded_one_fails(
    load: Callable[[str], Any], bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = load("cuda_checks")
    request_of = checks._request_of
    monkeypatch.setattr(
        checks, "_request_of", lambda case, end: request_of(case | {"alpha_intersection": 0.9}, end)
    )
    result = run(load, bench, "recorded")
    assert not result["passed"]
    assert "instead of" in result["failures"][0]


def test_a_neighbor_that_changes_a_reply_fails(
    load: Callable[[str], Any], bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safedraft.core import decode

    own = decode.propose

    def propose(*given: Any) -> Any:
        drafts = own(*given)
        return [draft._replace(token=drafts[0].token) for draft in drafts]

    monkeypatch.setattr(decode, "propose", propose)
    result = run(load, bench, "mixed")
    assert not result["passed"]
    assert result["figures"]["float32"]["equal"] < 6


def test_logits_that_are_not_looked_at_fail(
    load: Callable[[str], Any], bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safedraft.core.decode.require_finite", lambda logits, name: None)
    assert not run(load, bench, "broken")["passed"]


def test_blocks_that_change_a_token_fail(
    load: Callable[[str], Any], bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(seed: int, position: int, use: Any) -> float:
        return float(torch.rand((), generator=generator))

    monkeypatch.setattr("safedraft.core.decide.uniform", draw)
    failures = run(load, bench, "blocks")["failures"]
    assert "ssd at temperature 0.8: blocks of 1 and of 8 differ" in failures
    assert not any("temperature 0:" in failure for failure in failures)


def test_an_import_that_changes_torch_fails(
    load: Callable[[str], Any], bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = load("cuda_checks")
    changed = checks.WATCHED.replace("changed = [", "torch.cuda.Stream = object\nchanged = [")
    monkeypatch.setattr(checks, "WATCHED", changed)
    result = run(load, bench, "import")
    assert result["failures"] == ["the import changed torch.cuda.Stream"]


def test_reads_from_tensors_are_counted_with_their_places(load: Callable[[str], Any]) -> None:
    waits = load("cuda_waits")
    numbers = torch.ones(3)
    with waits.count_waits(torch.device("cpu")) as places:
        numbers[0].item()
        numbers.tolist()
        bool(numbers.all())
        numbers.cpu()
        numbers.to("cpu")
        numbers + 1
    assert places.total() == 5
    assert all("test_cuda_engine.py" in place for place in places)


@pytest.mark.parametrize("changed", [2, 3, 4, 5])
def test_a_row_that_differs_from_that_of_a_processor_or_among_others_fails(
    load: Callable[[str], Any], bench: Any, monkeypatch: pytest.MonkeyPatch, changed: int
) -> None:
    """Each model is ranked on a processor, then on the device, then for one row alone."""
    rows = load("cuda_rows")
    own, calls = rows.rank, count()

    def rank(logits: torch.Tensor, *given: Any) -> Any:
        error = 0.01 * (torch.arange(logits.shape[-1]) % 7)
        return own(logits + error * (next(calls) % 6 == changed), *given)

    monkeypatch.setattr(rows, "rank", rank)
    result = run(load, bench, "rows")
    assert not result["passed"]
    assert "float32" in result["failures"][0]


def test_draws_of_another_distribution_fail(
    load: Callable[[str], Any], bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = load("cuda_rows")
    monkeypatch.setattr(rows, "uniform", lambda *given: (given[1] * 0.618 % 1) ** 1.1)
    result = run(load, bench, "draws")
    assert len(result["failures"]) == 2


def test_the_deviation_of_even_counts_is_small_and_that_of_uneven_ones_large(
    load: Callable[[str], Any],
) -> None:
    rows = load("cuda_rows")
    mass = torch.tensor([0.5, 0.3, 0.1999, 0.0001])
    assert rows.measure_deviation(torch.tensor([500.0, 300.0, 200.0, 0.0]), mass) < 0
    assert rows.measure_deviation(torch.tensor([600.0, 200.0, 200.0, 0.0]), mass) > rows.BOUND
    assert rows.measure_deviation(torch.tensor([500.0, 300.0, 190.0, 10.0]), mass) > rows.BOUND
