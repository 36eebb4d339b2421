"""What a pair in vLLM asks of its engine, and refuses before it. None of it needs vLLM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import save_tokenizer
from transformers import AutoTokenizer

from safedraft.core.config import SSDConfig
from safedraft.core.errors import PromptTooLong, SafeDraftError
from safedraft.engines.vllm.pair import VllmPair


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


def test_a_prompt_that_leaves_no_room_is_refused(pair: VllmPair) -> None:
    with pytest.raises(PromptTooLong, match="shorten it") as told:
        pair.stream_ids([5] * 64)
    assert (told.value.tokens, told.value.context_length) == (64, 64)


class Asked:
    """An engine that notes what it is asked for, and ends every request at once."""

    def __init__(self) -> None:
        self.changes: list[dict[str, Any]] = []

    def add(
        self, prompt: Any, sampling: Any, end_tokens: Any, changes: dict[str, Any], arrivals: Any
    ) -> str:
        self.changes.append(changes)
        return "request"

    def finished(self, name: str) -> bool:
        return True

    def trace(self, name: str) -> None:
        return None

    def abort(self, name: str) -> None:
        pass

    def time_of(self, name: str, which: str) -> float:
        return 0.0


USER = {"role": "user", "content": "hi"}
BEGUN = [USER, {"role": "assistant", "content": "Sure,"}]
UNION = {"ssd_initial_scheme": "union"}


def test_the_prompt_of_a_text_is_that_of_a_user(pair: VllmPair) -> None:
    assert pair.prompt("hi") == pair.prompt([USER])
    with pytest.raises(SafeDraftError, match="the prompt is empty"):
        pair.prompt(" ")


@pytest.mark.parametrize("own", [False, True], ids=["the request's", "the pair's"])
def test_a_begun_turn_may_start_in_another_scheme(pair: VllmPair, own: bool) -> None:
    config = SSDConfig(prefill_scheme="union")
    engine: Any = Asked()
    pair = replace(pair, config=config if own else SSDConfig(), engine=engine)
    given: Any = {} if own else {"config": config}
    pair.generate("hi", **given)
    pair.generate("hi", prefill="Sure,", **given)
    pair.generate_many(["hi", BEGUN], **given)
    assert engine.changes == [{}, UNION, {}, UNION]
    with pytest.raises(SafeDraftError, match="prefill_scheme: nothing here tells"):
        pair.stream_ids([5, 6], **given)
    with pytest.raises(SafeDraftError, match="prefill_scheme: nothing here tells"):
        pair.generate_many_ids([[5, 6]], **given)
