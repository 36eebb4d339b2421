"""The rule of another distribution decides in vLLM's worker as it does in the first engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small import engine, transformers_pair

import safedraft
from safedraft.core.plugins import Registry
from safedraft.rules import RULES, find_rule

pytestmark = pytest.mark.vllm

EXAMPLE = Path(__file__).parents[2] / "examples/extension"


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The example's wheel on the path of this process and of those that it starts."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, str(EXAMPLE)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        # Tests before these have read the names that were installed at that time.
        patch.setattr("safedraft.rules.RULES", Registry(RULES.group, RULES.kind))
        yield


def in_processes(ranks: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """With more than one rank, each is a process of its own, bound to a core of its own."""
    if ranks > (os.cpu_count() or 1):
        pytest.skip("each rank is bound to a core of its own")
    if ranks > 1:
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "|".join(map(str, range(ranks))))
    return ranks


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_rule_decides_in_the_worker(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = safedraft.SamplingParams(max_new_tokens=32)
    ids = [[5, 6, 7, 8], [9, 30, 200], [400]]
    constants = find_rule("always_union").config
    weights = {0.8: None, 0.3: constants(alpha=0.3)}
    first_engine = transformers_pair("near")
    tokens = {}
    with engine("near", tensor_parallel_size=in_processes(ranks, monkeypatch)) as pair:
        for alpha, config in weights.items():
            replies, expected = (
                each.generate_many_ids(ids, sampling=sampling, config=config, rule="always_union")
                for each in (pair, first_engine)
            )
            tokens[alpha] = [[token.id for token in reply.trace] for reply in replies]
            assert tokens[alpha] == [[token.id for token in reply.trace] for reply in expected]
            places = {(token.scheme, token.alpha) for reply in replies for token in reply.trace}
            assert places == {("union", alpha)}
    assert tokens[0.8] != tokens[0.3]
