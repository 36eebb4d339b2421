"""The engine says what the authors' code and the first engine say, alone and in company."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from conftest import CONFORMANCE
from helpers.device import OnDevice
from small import engine, runner_of, scheduler_of, transformers_pair, watched

import safedraft
from safedraft import GenerationResult, SamplingParams, SSDConfig
from safedraft.cli.recording import read_recording, replay_cases
from safedraft.core.config import DraftingConfig
from safedraft.core.errors import SafeDraftError
from safedraft.pair import Prompts

pytestmark = pytest.mark.vllm

GREEDY = SamplingParams(max_new_tokens=48)


@pytest.fixture(scope="module")
def pair() -> Iterator[Any]:
    with engine("near") as started:
        yield started


@pytest.fixture(scope="module")
def first_engine() -> safedraft.Pair:
    return transformers_pair("near")


def prompts(count: int, seed: int = 0, longest: int = 60) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(2, 512) for _ in range(draw.randint(1, longest))] for _ in range(count)]


def samplings(count: int) -> list[SamplingParams]:
    """Greedy and sampled requests in turn."""
    kinds: list[dict[str, Any]] = [
        {"repetition_penalty": 1.3},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 20, "frequency_penalty": 0.8, "repetition_penalty": 1.2},
        {"temperature": 1.3, "top_p": 0.8, "presence_penalty": 1.5},
        {"logit_bias": {7: 6.0, 400: -100.0}, "presence_penalty": 2.0},
        {"temperature": 1.2, "min_p": 0.2},
        {"temperature": 0.8, "min_p": 0.05, "logit_bias": {9: 5.0}, "repetition_penalty": 1.1},
    ]
    return [
        SamplingParams(max_new_tokens=40, seed=100 + at, **kinds[at % len(kinds)])
        for at in range(count)
    ]


def assert_same(said: Sequence[GenerationResult], expected: Sequence[GenerationResult]) -> None:
    """Equal in all that is the same in every engine: not the blocks, and not the last digits."""
    assert len(said) == len(expected)
    for one, other in zip(said, expected, strict=True):
        assert shape(one) == shape(other)
        assert one.finish_reason == other.finish_reason
        assert chances(one) == pytest.approx(chances(other), abs=2e-3)


def shape(reply: GenerationResult) -> list[tuple[Any, ...]]:
    return [(token.id, token.matched, token.scheme, token.alpha) for token in reply.trace]


def chances(reply: GenerationResult) -> list[float]:
    pairs = [(token.draft_probability, token.target_probability) for token in reply.trace]
    return [chance or 0.0 for pair in pairs for chance in pair]


def by_the_first_engine(
    pair: safedraft.Pair, ids: Sequence[Sequence[int]], given: Sequence[SamplingParams]
) -> list[GenerationResult]:
    return [
        pair.stream_ids(Prompts(list(one), list(one)), sampling=sampling).drain()
        for one, sampling in zip(ids, given, strict=True)
    ]


def test_alone_it_says_what_the_first_engine_says(pair: Any, first_engine: Any) -> None:
    ids, given = prompts(8), samplings(8)
    expected = by_the_first_engine(first_engine, ids, given)
    for one, sampling, reply in zip(ids, given, expected, strict=True):
        said = pair.stream_ids(one, sampling=sampling).drain()
        assert_same([said], [reply])
        assert said.statistics.match_ratios == reply.statistics.match_ratios


def test_eight_at_a_time_as_well(pair: Any, first_engine: Any) -> None:
    ids, given = prompts(16, seed=1), samplings(16)
    expected = by_the_first_engine(first_engine, ids, given)
    said = pair.generate_many_ids(ids, sampling=given)
    assert_same(said, expected)


@pytest.mark.parametrize("rule", ["easd", "ssd_easd", "target_only", "speculative"])
def test_other_rules_say_what_they_say_in_the_first_engine(
    pair: Any, first_engine: Any, rule: str
) -> None:
    ids = prompts(4, seed=5)
    said = pair.generate_many_ids(ids, sampling=GREEDY, rule=rule)
    for one, reply in zip(ids, said, strict=True):
        expected = first_engine.stream_ids(one, sampling=GREEDY, rule=rule).drain()
        assert [token.id for token in reply.trace] == [token.id for token in expected.trace]


def test_log_probabilities_are_those_of_the_first_engine(pair: Any, first_engine: Any) -> None:
    (ids,) = prompts(1, seed=6)
    said, expected = (
        each.stream_ids(ids, sampling=GREEDY, top_logprobs=3).drain()
        for each in (pair, first_engine)
    )
    for token, other in zip(said.trace, expected.trace, strict=True):
        assert token.logprob == pytest.approx(other.logprob, abs=1e-2)
        assert [one.id for one in token.top_logprobs] == [one.id for one in other.top_logprobs]


def test_a_begun_turn_starts_in_its_own_scheme(pair: Any) -> None:
    config = SSDConfig(prefill_scheme="union")
    for begun, scheme in ((True, "union"), (False, "intersection")):
        stream = pair.stream_ids([5, 6], sampling=GREEDY, config=config, turn_begun=begun)
        assert stream.drain().trace[0].scheme == scheme
    with pytest.raises(SafeDraftError, match="token ids do not say"):
        pair.stream_ids([5, 6], config=config)


def test_constants_of_a_request_are_its_own(pair: Any, first_engine: Any) -> None:
    ids = prompts(4, seed=2)
    configs = [
        SSDConfig(),
        SSDConfig(alpha_union=2.0, threshold=1.0),
        SSDConfig(bin_size=3, sample_space_size=4, kappa=3),
        SSDConfig(initial_scheme="union"),
    ]
    said = pair.generate_many_ids(ids, sampling=GREEDY, config=configs)
    for one, config, reply in zip(ids, configs, said, strict=True):
        expected = first_engine.stream_ids(Prompts(one, one), sampling=GREEDY, config=config)
        assert_same([reply], [expected.drain()])


def test_the_target_runs_t_drafts_and_decides_the_place_behind_them(pair: Any) -> None:
    ran: list[int] = []
    runner = runner_of(pair)
    execute = runner.execute_model

    def watch(output: Any, *args: Any, **kwargs: Any) -> Any:
        ran.append(output.total_num_scheduled_tokens)
        return execute(output, *args, **kwargs)

    runner.execute_model = watch
    reply = pair.stream_ids([5, 6, 7, 8], sampling=GREEDY).drain()
    del runner.execute_model
    assert [count for count in ran if count] == [4] + [1 + 3] * reply.statistics.blocks
    assert max(Counter(token.block for token in reply.trace).values()) == 4


def test_a_step_of_any_requests_reads_the_device_twice(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for the drafts and once for the decisions; three of the requests are sampled."""
    runner = runner_of(pair)
    for model in (runner.model, runner.drafter.model):
        compute = model.compute_logits
        monkeypatch.setattr(
            model, "compute_logits", lambda *args, to=compute: to(*args).as_subclass(OnDevice)
        )
    reads: list[tuple[int, int]] = []
    sample = runner.sample_tokens

    def watch(*args: Any) -> Any:
        before = OnDevice.reads
        output = sample(*args)
        reads.append((len(runner.drafter.rows), OnDevice.reads - before))
        return output

    monkeypatch.setattr(runner, "sample_tokens", watch)
    kinds: list[dict[str, Any]] = [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 20}]
    given = [
        SamplingParams(max_new_tokens=12, seed=at, **kinds[at % 3], top_p=0.9 if at % 3 else 1.0)
        for at in range(6)
    ]
    config = SSDConfig(initial_scheme="union", bin_size=20)  # no position is the target's alone
    pair.generate_many_ids(prompts(6, seed=13), sampling=given, config=config)
    assert (6, 2) in reads
    assert {count for _, count in reads} == {1, 2}  # 1 where nothing was decided


def test_passes_and_seconds_are_counted(pair: Any) -> None:
    reply = pair.stream_ids(prompts(1)[0], sampling=GREEDY).drain()
    figures = reply.statistics
    assert figures.tokens == len(reply.trace)
    assert figures.target_passes == figures.blocks + 1  # and the prefill
    assert figures.target_rows == 1 + 4 * figures.blocks
    assert figures.draft_passes == 4 * figures.target_passes
    assert 0 < figures.target_seconds + figures.draft_seconds < figures.seconds


def test_a_prompt_that_is_cached_but_for_one_token(pair: Any, first_engine: Any) -> None:
    """vLLM fills such a row up with placeholders for drafts, if others run beside it."""
    begun = prompts(1, seed=3)[0] * 64
    ids = [begun[:64], begun[:65]]
    with watched(pair) as seen:
        other = pair.stream_ids(ids[0], sampling=GREEDY)
        next(other)
        said = pair.stream_ids(ids[1], sampling=GREEDY).drain()
        other.drain()
    assert seen["placeholders"]
    expected = by_the_first_engine(first_engine, ids, [GREEDY, GREEDY])
    assert_same([other.result, said], expected)


def test_a_reply_that_is_closed_leaves_the_others_alone(pair: Any, first_engine: Any) -> None:
    ids, given = prompts(24, seed=4), samplings(24)
    expected = by_the_first_engine(first_engine, ids, given)
    draw = random.Random(5)
    running = {}
    said: dict[int, GenerationResult] = {}
    waiting = list(range(24))
    while waiting or running:
        while waiting and len(running) < 12:
            at = waiting.pop(0)
            running[at] = pair.stream_ids(ids[at], sampling=given[at])
        at = draw.choice(list(running))
        if draw.random() < 0.01:
            running.pop(at).close()
        elif next(running[at], None) is None:
            said[at] = running.pop(at).result
    assert 8 < len(said) < 24
    for at, reply in said.items():
        assert_same([reply], [expected[at]])
    assert not scheduler_of(pair).running
    assert not scheduler_of(pair).waiting
    pair.stream_ids(ids[0], sampling=given[0]).drain()
    assert len(runner_of(pair)._served) <= 1  # the last one is forgotten with the next step


def test_a_reply_ends_where_the_context_does(pair: Any) -> None:
    ids = prompts(1, seed=6)[0][:1] * 200
    reply = pair.stream_ids(ids, sampling=SamplingParams(max_new_tokens=500)).drain()
    assert reply.finish_reason == "length"
    assert len(reply.trace) == pair.context_length - 200 == 256 - 2 * (3 + 1) - 200
    with pytest.raises(SafeDraftError, match="shorten it"):
        pair.stream_ids(ids * 2)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"logprobs": 2}, "beam search is not supported .*nor are logprobs"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"min_tokens": 4}, "min_tokens"),
        ({"logit_bias": {512: 1.0}}, "logit_bias: 512: ids end at 511"),
        ({"bad_words": ["no"]}, "bad_words: this engine has no tokenizer"),
        ({"extra_args": {"ssd_logit_bias": {512: 1.0}}}, "logit_bias: 512: ids end at 511"),
        ({"extra_args": {"ssd_min_p": 2}}, "min_p: must be at most 1"),
        ({"extra_args": {"ssd_alpha": 1}}, "ssd_alpha: not known"),
        ({"extra_args": {"ssd_alpha_union": -1}}, "alpha_union: must be at least 0"),
        ({"extra_args": {"ssd_draft_tokens": 1}}, "ssd_draft_tokens: not known"),
        ({"extra_args": {"ssd_prefill_scheme": "union"}}, "token ids do not say"),
        ({"extra_args": {"ssd_rule": "none"}}, "no rule is called 'none'"),
        ({"extra_args": {"anything": 1}}, "anything: not known"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_bypass_the_rule_is_refused(
    pair: Any, given: dict[str, Any], reason: str
) -> None:
    from vllm import SamplingParams as VllmSamplingParams
    from vllm.exceptions import VLLMValidationError

    params = VllmSamplingParams(**{"temperature": 0.0, "detokenize": False, **given})
    with pytest.raises(VLLMValidationError, match=reason):
        pair.engine._llm.generate([{"prompt_token_ids": [5, 6]}], params, use_tqdm=False)


def test_no_sampler_of_vllms_is_left(pair: Any) -> None:
    runner = runner_of(pair)
    for sampler in (runner.sampler, runner.rejection_sampler):
        with pytest.raises(SafeDraftError, match="without the draft"):
            sampler(logits=None)


@pytest.mark.parametrize("draft", ["mid", "far"])
def test_the_authors_tokens(draft: str) -> None:
    recording = read_recording(CONFORMANCE / f"{draft}.json")
    cases = [case for case in recording.cases if case.target_prompt == case.draft_prompt]
    assert len(cases) == 6
    with engine(draft, SSDConfig(draft_tokens=4)) as pair:
        decoding = replace(pair, end_tokens=recording.end_tokens)
        assert replay_cases(decoding, cases, DraftingConfig(draft_tokens=4)) == [None] * 6
