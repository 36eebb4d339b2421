"""A request's statistics come with its end, whatever happened to it on the way."""

from __future__ import annotations

from typing import Any

import pytest
from small import engine, runner_of, transformers_pair, watched
from test_engine import by_the_first_engine, prompts

import safedraft

pytestmark = pytest.mark.vllm


def test_statistics_outlive_a_preemption_and_no_request() -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    ids = prompts(20, seed=7, longest=120)
    sampling = safedraft.SamplingParams(max_new_tokens=40)
    expected = by_the_first_engine(transformers_pair("near"), ids, [sampling] * 20)
    tight: dict[str, Any] = {"num_gpu_blocks_override": 14, "max_num_batched_tokens": 48}
    with engine("near", **tight) as pair, watched(pair) as seen:
        core, runner = pair.engine._engine, runner_of(pair)
        for at, one in enumerate(ids):
            params = SamplingParams(
                temperature=0.0, max_tokens=40, detokenize=False, ignore_eos=True,
                stop_token_ids=sorted(pair.end_tokens), output_kind=RequestOutputKind.FINAL_ONLY,
                extra_args={"ssd_statistics": at % 2},
            )  # fmt: skip
            core.add_request(str(at), {"prompt_token_ids": one}, params)
        told: dict[int, Any] = {}
        core.step()
        core.abort_request(["1"])
        while core.has_unfinished_requests():
            for output in core.step():
                told[int(output.request_id)] = output.kv_transfer_params
        pair.stream_ids(ids[0], sampling=sampling).drain()
        assert not any(
            served.wants_statistics for served in runner._served.values()
        )  # aborted or ended
        assert not runner._statistics
    assert seen["resumed in a reply"]
    assert sorted(told) == [at for at in range(20) if at != 1]
    for at, found in told.items():
        if at % 2 == 0:
            assert found is None
            continue
        figures, trace = expected[at].statistics, expected[at].trace
        assert found["safedraft"]["tokens"] == figures.tokens
        assert found["safedraft"]["match_ratio"] == pytest.approx(figures.match_ratio)
        unions = sum(token.scheme == "union" for token in trace)
        assert found["safedraft"]["union_share"] == pytest.approx(unions / len(trace))
