"""What a pair in vLLM asks of its engine, and refuses before it. None of it needs vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import save_tokenizer
from transformers import AutoTokenizer

from safedraft.config import SSDConfig
from safedraft.engines.vllm.pair import VllmPair
from safedraft.errors import SafeDraftError


@pytest.fixture
def pair(tmp_path: Path) -> VllmPair:
    save_tokenizer(tmp_path)
    return VllmPair(
        target="target",
        draft="draft",
        tokenizer=AutoTokenizer.from_pretrained(tmp_path),
        system=None,
        vocabulary=258,
        context_length=64,
        end_tokens=frozenset({256}),
        config=SSDConfig(),
        engine=None,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("top_logprobs", [0, 5])
def test_log_probabilities_are_refused(pair: VllmPair, top_logprobs: int) -> None:
    asked: Any = {"top_logprobs": top_logprobs}
    for ask in (pair.generate, pair.stream):
        with pytest.raises(SafeDraftError, match="top_logprobs: vLLM"):
            ask("hi", **asked)
    with pytest.raises(SafeDraftError, match="top_logprobs: vLLM"):
        pair.stream_ids([5, 6], **asked)
