"""vLLM starts in a process that has imported numba, which the engine cpu does."""

from __future__ import annotations

import pytest
from small import engine

pytestmark = pytest.mark.vllm


def test_the_engine_starts_after_numba_was_imported() -> None:
    pytest.importorskip("llvmlite.binding")
    with engine("near") as pair:
        assert pair.generate("Hi", max_new_tokens=3).statistics.tokens > 0
