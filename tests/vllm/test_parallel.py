"""Two tensor-parallel ranks say what one says."""

from __future__ import annotations

import os

import pytest
from small import engine, transformers_pair
from test_engine import assert_same, by_the_first_engine, prompts, samplings

pytestmark = pytest.mark.vllm


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="each rank is bound to a core of its own")
def test_two_tensor_parallel_ranks_say_what_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    ids, given = prompts(8, seed=10), samplings(8)
    expected = by_the_first_engine(transformers_pair("near"), ids, given)
    with engine("near", tensor_parallel_size=2) as pair:
        said = pair.generate_many_ids(ids, sampling=given)
    assert_same(said, expected)
