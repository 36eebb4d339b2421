"""A stream yields tokens with text, ends at stop strings and keeps what was decoded."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest
from conftest import save_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.core.generation import Generation, Step
from safedraft.core.request import Request
from safedraft.rules.ssd import SSD
from safedraft.text.detokenizer import Detokenizer
from safedraft.text.results import Statistics
from safedraft.text.stream import Stream

END = 256


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def step(token: int) -> Step:
    return Step(token, True, Scheme.INTERSECTION, 0.3, 0.6, None, 0.5, 0.5, 0)


class Replayed:
    """A batch whose one request decides the steps that it is given, one at a time."""

    def __init__(self, steps: Iterator[Step]) -> None:
        request = Request([1], [1], SSD(), SSDConfig(), SamplingParams(), frozenset({END}))
        self.generation = Generation(request)
        self._steps = steps

    def add(self, request: Request) -> Generation:
        raise NotImplementedError

    def step(self) -> None:
        following = next(self._steps, None)
        if following is None:
            self.generation.ended = True
        else:
            self.generation.steps.append(following)

    def remove(self, generation: Generation) -> None:
        generation.ended = True
        if isinstance(self._steps, Generator):
            self._steps.close()


def stream_steps(tokenizer: Any, steps: Iterator[Step], stop: tuple[str, ...] = ()) -> Stream:
    batch = Replayed(steps)
    return Stream(batch, batch.generation, Detokenizer(tokenizer, []), Statistics(), stop)


def stream_ids(tokenizer: Any, ids: list[int]) -> Stream:
    return stream_steps(tokenizer, map(step, ids))


def stream_text(tokenizer: Any, text: str, stop: tuple[str, ...] = ()) -> Stream:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return stream_steps(tokenizer, map(step, ids), stop)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="abé", max_size=25),
    stop=st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3).map(tuple),
)
def test_the_reply_is_cut_where_the_first_stop_string_starts(
    tokenizer: Any, text: str, stop: tuple[str, ...]
) -> None:
    stream = stream_text(tokenizer, text, stop)
    pieces = [token.text for token in stream]
    # A stop string counts as soon as it is complete; of those complete at once, the earliest start.
    ends = [text.find(s) + len(s) for s in stop if s in text]
    seen = text[: min(ends)] if ends else text
    starts = [seen.find(s) for s in stop if s in seen]
    assert "".join(pieces) == stream.result.text == (seen[: min(starts)] if starts else text)
    assert stream.result.finish_reason == ("stop" if starts else "length")


def test_text_that_begins_no_stop_string_is_not_held_back(tokenizer: Any) -> None:
    stream = stream_text(tokenizer, "abcab", stop=("cx",))
    assert [next(stream).text for _ in range(2)] == ["a", "b"]
    assert stream.result.text == "ab"


def test_an_end_token_ends_the_reply_and_has_no_text(tokenizer: Any) -> None:
    stream = stream_ids(tokenizer, [*tokenizer.encode("ok", add_special_tokens=False), END, 5])
    assert stream.drain().text == "ok"
    assert stream.result.finish_reason == "stop"
    assert [token.id for token in stream.result.trace][-1] == END


def test_a_reply_that_ends_inside_a_character_has_a_replacement_character(tokenizer: Any) -> None:
    ids = tokenizer.encode("a🙂", add_special_tokens=False)[:-1]
    stream = stream_ids(tokenizer, ids)
    pieces = [token.text for token in stream]
    assert "".join(pieces) == stream.result.text == "a\N{REPLACEMENT CHARACTER}"


def test_closing_the_stream_keeps_what_was_decoded(tokenizer: Any) -> None:
    stream = stream_text(tokenizer, "abcdef", stop=("cdz",))
    for _ in range(2):
        next(stream)
    stream.close()
    assert stream.result.text == "ab"
    assert stream.result.finish_reason == "interrupted"
    assert stream.result.statistics.tokens == len(stream.result.trace) == 2


def test_a_stream_that_is_closed_before_its_first_token_leaves_its_batch(tokenizer: Any) -> None:
    batch = Replayed(map(step, tokenizer.encode("abc", add_special_tokens=False)))
    stream = Stream(batch, batch.generation, Detokenizer(tokenizer, []), Statistics())
    stream.close()
    assert batch.generation.ended
    assert stream.result.text == "".join(token.text for token in stream) == ""


@pytest.mark.parametrize("stop", [(), ("b",)], ids=["closed", "stop string"])
def test_steps_are_closed_when_the_reply_ends(tokenizer: Any, stop: tuple[str, ...]) -> None:
    closed = []

    def steps() -> Iterator[Step]:
        try:
            yield from map(step, tokenizer.encode("abc", add_special_tokens=False))
        finally:
            closed.append(True)

    stream = stream_steps(tokenizer, steps(), stop)
    next(stream)
    assert not closed
    stream.drain() if stop else stream.close()
    assert closed
    assert stream.result.text == "a"


def test_ctrl_c_inside_a_forward_pass_keeps_the_held_text(tokenizer: Any) -> None:
    def steps() -> Iterator[Step]:
        yield from map(step, tokenizer.encode("ab", add_special_tokens=False))
        raise KeyboardInterrupt

    stream = stream_steps(tokenizer, steps(), stop=("bc",))
    with pytest.raises(KeyboardInterrupt):
        stream.drain()
    assert stream.result.text == "ab"
