"""vLLM starts in a process that has imported numba, which the engine cpu does."""

from __future__ import annotations

import pytest
from small import engine

import safedraft

pytestmark = pytest.mark.vllm


def test_the_engine_starts_after_numba_was_imported() -> None:
    pytest.importorskip("llvmlite.binding")
    with engine("near") as pair:
        sampling = safedraft.SamplingParams(max_new_tokens=3)
        reply = pair.stream_ids([1, 2, 3], sampling=sampling).drain()
        assert reply.statistics.tokens > 0
