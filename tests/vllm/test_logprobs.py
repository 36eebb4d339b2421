"""Log probabilities that vLLM reports are those of the composite, of every token and no other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from small import speaking

from safedraft import SamplingParams, Token
from safedraft.core.generation import Step
from safedraft.core.sampling import LogProbabilities

pytestmark = pytest.mark.vllm

PROMPT = [72, 101, 108, 108, 111]

KINDS: list[tuple[SamplingParams, int | None]] = [
    (SamplingParams(max_new_tokens=20), 3),
    (SamplingParams(max_new_tokens=20, temperature=1.0, seed=4), None),
    (SamplingParams(max_new_tokens=20, temperature=1.0, seed=2), 0),
    (SamplingParams(max_new_tokens=20, temperature=0.8, seed=3, top_k=2), 5),
    (SamplingParams(max_new_tokens=20, temperature=1.5, seed=9, presence_penalty=1.0), 2),
]
"""Sampling parameters and number of alternatives, of requests that run together."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with speaking(tmp_path_factory.mktemp("speaking")) as started:
        yield started


def params_of(pair: Any, sampling: SamplingParams, count: int | None, **more: Any) -> Any:
    from vllm import SamplingParams as VllmSamplingParams
    from vllm.sampling_params import RequestOutputKind

    given = {
        "output_kind": RequestOutputKind.FINAL_ONLY, "ignore_eos": True,
        "stop_token_ids": sorted(pair.end_tokens), **more,
    }  # fmt: skip
    return VllmSamplingParams(
        temperature=sampling.temperature,
        seed=sampling.seed,
        top_k=sampling.top_k,
        presence_penalty=sampling.presence_penalty,
        max_tokens=sampling.max_new_tokens,
        logprobs=count,
        **given,
    )


def decode(pair: Any, wanted: Sequence[Any]) -> list[list[Any]]:
    """The outputs of each request; all of them run together."""
    core = pair.engine._engine
    for at, params in enumerate(wanted):
        core.add_request(str(at), {"prompt_token_ids": PROMPT}, params)
    said: list[list[Any]] = [[] for _ in wanted]
    while core.has_unfinished_requests():
        for output in core.step():
            said[int(output.request_id)].append(output.outputs[0])
    return said


def expected_of(pair: Any, sampling: SamplingParams, count: int | None, **more: Any) -> list[Token]:
    """The trace of the same reply in the library."""
    stream = pair.stream_ids(PROMPT, sampling=sampling, top_logprobs=count, **more)
    return list(stream.drain().trace)


def assert_those_of(reported: Sequence[Any], trace: Sequence[Token]) -> None:
    """Each token's entries are its own and those of the alternatives, decoded."""
    assert len(reported) == len(trace)
    for found, token in zip(reported, trace, strict=True):
        values = {id: one.logprob for id, one in found.items()}
        expected = {token.id: token.logprob}
        expected |= {other.id: other.logprob for other in token.top_logprobs}
        assert list(values) == list(expected)  # the token first, then by probability
        assert values == pytest.approx(expected, abs=1e-3)
        assert all(isinstance(one.decoded_token, str) for one in found.values())


def step_of(token: int, chosen: float, *likely: tuple[int, float]) -> Step:
    logprobs = LogProbabilities(chosen, list(likely))
    return Step(token, True, None, 0.0, None, None, None, 0.5, 0, logprobs)


def test_the_table_has_the_rows_that_report_them_in_order() -> None:
    from safedraft.engines.vllm.logprobs import tabulate

    silent = replace(step_of(3, 0.0), logprobs=None)
    rows = [
        [step_of(7, -0.5, (5, -0.1), (7, -0.5)), step_of(8, -2.0, (5, -0.1))],
        [silent, silent],
        [],
        [step_of(9, -0.25)],
    ]
    table = tabulate(rows)
    assert table is not None
    assert table.cu_num_generated_tokens == [0, 2, 2, 2, 3]
    assert table.logprob_token_ids.tolist() == [[7, 5, 7], [8, 5, 5], [9, 9, 9]]
    assert table.logprobs.tolist() == [[-0.5, -0.1, -0.5], [-2.0, -0.1, -0.1], 3 * [-0.25]]
    assert table.sampled_token_ranks.tolist() == [2, 0, 0]
    assert tabulate([[silent], []]) is None


def test_requests_that_run_together_have_those_of_the_library(pair: Any) -> None:
    said = decode(pair, [params_of(pair, *kind) for kind in KINDS])
    for (output,), (sampling, count) in zip(said, KINDS, strict=True):
        trace = expected_of(pair, sampling, count)
        assert list(output.token_ids) == [token.id for token in trace]
        if count is None:
            assert output.logprobs is None
            continue
        assert_those_of(output.logprobs, trace)
        total = sum(token.logprob or 0.0 for token in trace)
        assert output.cumulative_logprob == pytest.approx(total, abs=1e-2)


def test_they_are_not_those_of_the_target_alone(pair: Any) -> None:
    sampling, count = KINDS[0]
    ((output,),) = decode(pair, [params_of(pair, sampling, count)])
    first = output.logprobs[0]
    alone = expected_of(pair, sampling, count, rule="target_only")[0]
    given = {other.id: other.logprob for other in alone.top_logprobs}
    assert {id: one.logprob for id, one in first.items()} != pytest.approx(given, abs=0.1)


def test_a_stream_and_a_stop_string_have_one_for_each_token(pair: Any) -> None:
    from vllm.sampling_params import RequestOutputKind

    sampling, count = KINDS[0]
    trace = expected_of(pair, sampling, count)
    text = pair.target.tokenizer.decode([token.id for token in trace])
    stop = next(one for one in text[5:] if one.isascii())
    pieces, (stopped,) = decode(
        pair,
        [
            params_of(pair, sampling, count, output_kind=RequestOutputKind.DELTA),
            params_of(pair, sampling, count, stop=[stop]),
        ],
    )
    assert len(pieces) > 1
    assert all(len(piece.logprobs) == len(piece.token_ids) for piece in pieces)
    assert_those_of([found for piece in pieces for found in piece.logprobs], trace)
    assert stopped.finish_reason == "stop"
    assert len(stopped.token_ids) < len(trace)
    assert_those_of(stopped.logprobs, trace[: len(stopped.token_ids)])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_within_a_grammar_nothing_else_has_a_probability(pair: Any, temperature: float) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    words = ["yes", "no"]
    sampling = SamplingParams(max_new_tokens=9, temperature=temperature, seed=1)
    grammar = StructuredOutputsParams(choice=words)
    params = params_of(pair, sampling, 4, structured_outputs=grammar, ignore_eos=False)
    ((output,),) = decode(pair, [params])
    first, *others = output.logprobs
    assert {one.decoded_token for one in first.values()} == {"y", "n"}
    assert sum(math.exp(one.logprob) for one in first.values()) == pytest.approx(1)
    for id, found in zip(output.token_ids[1:], others, strict=True):
        assert {key: one.logprob for key, one in found.items()} == {id: 0.0}


def test_the_whole_vocabulary_is_every_token_that_can_be_chosen(pair: Any) -> None:
    core = pair.engine._engine
    limit = core.model_config.max_logprobs
    core.model_config.max_logprobs = -1
    try:
        ((output,),) = decode(pair, [params_of(pair, SamplingParams(max_new_tokens=5), -1)])
    finally:
        core.model_config.max_logprobs = limit
    trace = expected_of(pair, SamplingParams(max_new_tokens=5), 10**6)
    assert_those_of(output.logprobs, trace)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"detokenize": False}, "beam search is not supported"),
        ({"prompt_logprobs": 1}, "prompt_logprobs is not supported"),
        ({"logprob_token_ids": [65, 66]}, "logprob_token_ids is not supported"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_show_the_target_alone_or_choose_itself_is_refused(
    pair: Any, given: dict[str, Any], reason: str
) -> None:
    from vllm.exceptions import VLLMValidationError

    params = params_of(pair, KINDS[0][0], 2, **given)
    with pytest.raises(VLLMValidationError, match=reason):
        pair.engine._engine.add_request("0", {"prompt_token_ids": PROMPT}, params)


def test_beam_search_of_vllms_own_is_refused(pair: Any) -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import BeamSearchParams

    prompt: Any = {"prompt_token_ids": PROMPT}
    with pytest.raises(VLLMValidationError, match="beam search is not supported"):
        pair.engine._llm.beam_search([prompt], BeamSearchParams(beam_width=2, max_tokens=3))
