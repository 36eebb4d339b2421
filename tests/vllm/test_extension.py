"""A third party's rule decides in vLLM's worker what it decides in the first engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from small import engine, transformers_pair

import safedraft

pytestmark = pytest.mark.vllm

EXAMPLE = Path(__file__).parents[2] / "examples/extension"


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The example's wheel on the path of this process and of those that it starts."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, str(EXAMPLE)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        yield  # type: ignore[misc]


def test_a_third_partys_rule_decides_in_the_worker() -> None:
    sampling = safedraft.SamplingParams(max_new_tokens=32)
    ids = [[5, 6, 7, 8], [9, 30, 200], [400]]
    expected = transformers_pair("near").generate_many_ids(
        ids, sampling=sampling, rule="always_union"
    )
    with engine("near") as pair:
        replies = pair.generate_many_ids(ids, sampling=sampling, rule="always_union")
    for reply, other in zip(replies, expected, strict=True):
        assert [token.id for token in reply.trace] == [token.id for token in other.trace]
        assert {token.scheme for token in reply.trace} == {"union"}
        assert {token.alpha for token in reply.trace} == {0.8}
