"""Preempted, cut into chunks, left out of steps: a reply says what it says alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any, Literal

import pytest
from small import break_logits, engine, runner_of, scheduler_of, transformers_pair, watched
from test_engine import assert_same, by_the_first_engine, prompts, samplings, shape

from safedraft import SSDConfig
from safedraft.core.errors import BrokenModelError, SafeDraftError

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize(
    "options",
    [
        {"enable_prefix_caching": True},
        {"enable_prefix_caching": False},
        {"draft_tokens_up_to": {2: 3, 4: 2, 8: 1}},
    ],
    ids=["prefix caching", "no prefix caching", "T by load"],
)
def test_a_cache_too_small_for_all_and_prompts_in_chunks(options: dict[str, Any]) -> None:
    ids, given = prompts(20, seed=7, longest=120), samplings(20)
    expected = by_the_first_engine(transformers_pair("near"), ids, given)
    tight: dict[str, Any] = {"num_gpu_blocks_override": 14, "max_num_batched_tokens": 48}
    with engine("near", **tight, **options) as pair, watched(pair) as seen:
        said = pair.generate_many_ids(ids, sampling=given)
    assert_same(said, expected)
    assert seen["resumed in a reply"]


def spoil_free_blocks(pair: Any) -> None:
    """What nobody may read any more is made something else, as by another request."""
    queue = scheduler_of(pair).kv_cache_manager.block_pool.free_block_queue
    free = [block.block_id for block in queue.get_all_free_blocks() if block.block_hash is None]
    for cache in runner_of(pair).kv_caches:
        cache[free] = 2.0


@pytest.mark.parametrize(("chunk", "happens"), [(42, "left out"), (39, "drafts cut")])
def test_a_long_prompt_leaves_no_room_for_the_replies_behind_it(chunk: int, happens: str) -> None:
    ids, given = prompts(8, seed=9, longest=1), samplings(8)
    ids[0] *= 200
    expected = by_the_first_engine(transformers_pair("near"), ids, given)
    narrow = {"max_num_batched_tokens": 48, "long_prefill_token_threshold": chunk}
    with engine("near", **narrow) as pair, watched(pair) as seen:
        said = pair.generate_many_ids(ids, sampling=given)
    assert_same(said, expected)
    assert seen[happens]


@pytest.mark.parametrize(
    ("options", "happens"),
    [
        ({"config": SSDConfig(draft_tokens=1)}, "placeholders of a reply"),
        ({"config": SSDConfig(draft_tokens=3)}, "placeholders of a reply"),
        ({"draft_tokens_up_to": {4: 3, 8: 2}}, "resumed, all cached but one token"),
    ],
    ids=["T = 1", "T = 3", "T by load"],
)
def test_a_reply_is_preempted_and_cached_but_for_one_token(
    options: dict[str, Any], happens: str
) -> None:
    ids, given = prompts(12, seed=8), samplings(12)
    expected = by_the_first_engine(transformers_pair("near"), ids, given)
    with engine("near", **options) as pair, watched(pair) as seen:
        scheduler, preempted = scheduler_of(pair), set()
        schedule = scheduler.schedule

        def preempt(*args: Any) -> Any:
            """Whoever has just filled a block of the cache, once."""
            for request in list(scheduler.running):
                full = request.num_tokens % scheduler.block_size == 1
                if full and request.num_output_tokens and request.request_id not in preempted:
                    preempted.add(request.request_id)
                    scheduler.running.remove(request)
                    scheduler._preempt_request(request, time.monotonic())
                    spoil_free_blocks(pair)
            return schedule(*args)

        scheduler.schedule = preempt
        said = [
            pair.stream_ids(one, sampling=sampling).drain()
            for one, sampling in zip(ids, given, strict=True)
        ]
    assert_same(said, expected)
    assert seen["resumed, all cached but one token"]
    assert seen[happens]


def lose_drafts(request: Any) -> None:
    request.drafts = []


def end_unseen(request: Any) -> None:
    request.ended = request.position > 0


@pytest.mark.parametrize(
    ("spoil", "message", "decided"),
    [(lose_drafts, "did not propose", [0]), (end_unseen, "has ended", [1, 2, 3, 4])],
)
def test_a_fault_of_one_request_ends_no_other(
    spoil: Callable[[Any], None], message: str, decided: list[int]
) -> None:
    ids, given = prompts(3, seed=13), samplings(3)
    expected = by_the_first_engine(transformers_pair("near"), ids, given)
    with engine("near") as pair:
        runner = runner_of(pair)
        keep = runner._keep

        def keep_some(*args: Any) -> None:
            keep(*args)
            for row in runner._rows:
                if row.request and row.request.request.seed == given[1].seed:
                    spoil(row.request)

        runner._keep = keep_some
        streams = [pair.stream_ids(one, sampling=own) for one, own in zip(ids, given, strict=True)]
        with pytest.raises(BrokenModelError, match=message):
            streams[1].drain()
        assert len(streams[1].result.trace) in decided
        assert_same([streams[at].drain() for at in (0, 2)], [expected[at] for at in (0, 2)])


@pytest.mark.parametrize("model", ["draft", "target"])
def test_broken_logits_end_their_own_request_alone(
    model: Literal["draft", "target"], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, given = prompts(4, seed=11), samplings(4)
    expected = by_the_first_engine(transformers_pair("near"), ids, given)

    def breaks(one: Any) -> bool:
        return one.request.seed == given[2].seed and one.position > 9

    with engine("near") as pair:
        break_logits(monkeypatch, model, breaks)
        streams = [pair.stream_ids(one, sampling=own) for one, own in zip(ids, given, strict=True)]
        for at in (0, 1, 3):
            assert_same([streams[at].drain()], [expected[at]])
        with pytest.raises(BrokenModelError, match=f"the {model} gave NaN"):
            streams[2].drain()
        begun = streams[2].result
        assert begun.finish_reason == "interrupted"
        assert 9 < len(begun.trace) < len(expected[2].trace)
        assert shape(begun) == shape(expected[2])[: len(begun.trace)]
        assert not scheduler_of(pair).running
        monkeypatch.undo()
        assert_same([pair.stream_ids(ids[2], sampling=given[2]).drain()], [expected[2]])
        assert len(runner_of(pair)._served) == 1


def test_of_many_none_goes_on_when_one_breaks_off() -> None:
    with engine("near") as pair:
        runner, step = runner_of(pair), pair.engine.step
        steps = count()

        def stopped() -> None:
            if next(steps) == 3:
                raise KeyboardInterrupt
            step()

        vars(pair.engine)["step"] = stopped
        with pytest.raises(KeyboardInterrupt):
            pair.generate_many_ids([[5, 6, 7], [8, 9], [10, 11]], sampling=samplings(3))
        assert not pair.engine._engine.has_unfinished_requests()
        (reply,) = pair.generate_many_ids([[5, 6, 7]], sampling=samplings(1))
        assert reply.trace
        # vLLM says at its next pass that a request has ended.
        assert len(runner._served) == 1
        assert runner._traces.keys() <= {"safedraft-3"}
        with pytest.raises(SafeDraftError, match="generate takes one"):
            pair.generate_many("Why?")


def test_where_vllm_would_leave_all_drafts_out_the_longest_request_ends_alone() -> None:
    ids = [[5, 6, 7], list(range(2, 16)), [8, 9]]
    given = [one.replace(max_new_tokens=10) for one in samplings(3)]
    expected = by_the_first_engine(transformers_pair("near"), ids, given)
    with engine("near") as pair:
        runner_of(pair).effective_drafter_max_model_len = 20
        streams = [pair.stream_ids(one, sampling=own) for one, own in zip(ids, given, strict=True)]
        with pytest.raises(BrokenModelError, match="no room left"):
            streams[1].drain()
        assert len(streams[1].result.trace) < 7
        assert_same([streams[at].drain() for at in (0, 2)], [expected[at] for at in (0, 2)])
        with pytest.raises(BrokenModelError, match="no room left"):  # and no request is too long
            runner_of(pair)._input_fits_in_drafter(None)
