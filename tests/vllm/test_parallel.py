"""Two ranks and two engines say what one says."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from small import engine, transformers_pair
from test_engine import assert_same, by_the_first_engine, prompts, samplings
from test_server import ask, models, serving  # noqa: F401  (models is a fixture)

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="each rank is bound to a core of its own"),
]

BOUND = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}


def test_two_tensor_parallel_ranks_say_what_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, given = prompts(8, seed=10), samplings(8)
    expected = by_the_first_engine(transformers_pair("near"), ids, given)
    for name, value in BOUND.items():
        monkeypatch.setenv(name, value)
    with engine("near", tensor_parallel_size=2) as pair:
        said = pair.generate_many_ids(ids, sampling=given)
    assert_same(said, expected)


def test_two_data_parallel_engines_answer_at_one_address(
    models: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    def said(server: str, seed: int) -> Any:
        status, answer = ask(server, temperature=1.0, seed=seed)
        assert status == 200
        return answer["choices"][0]["message"]["content"]

    with serving(models, tmp_path) as server:
        alone = [said(server, seed) for seed in range(8)]
    with (
        serving(models, tmp_path, "--data-parallel-size", "2", **BOUND) as server,
        ThreadPoolExecutor(8) as clients,
    ):
        together = list(clients.map(said, [server] * 8, range(8)))
    assert together == alone
    assert len(set(together)) > 1
