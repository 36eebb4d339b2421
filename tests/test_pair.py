"""A pair encodes prompts, checks requests, and gives the same reply streamed or whole."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import save_model, save_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import safedraft
from safedraft.core.errors import SafeDraftError
from safedraft.text.encode import encode_text

USER = {"role": "user", "content": "hi"}
BEGUN = [USER, {"role": "assistant", "content": "Sure,"}]
START = 257


@pytest.fixture(scope="module")
def pair(tiny_pair: tuple[Path, Path]) -> safedraft.Pair:
    return safedraft.load_pair(
        target=str(tiny_pair[0]), draft=str(tiny_pair[1]), engine="transformers"
    )


def test_stream_and_generate_give_the_same_reply(pair: safedraft.Pair) -> None:
    sampling = safedraft.SamplingParams(max_new_tokens=40)
    stream = pair.stream("hi", sampling=sampling)
    tokens = list(stream)
    reply = pair.generate("hi", sampling=sampling)
    assert "".join(token.text for token in tokens) == reply.text == stream.result.text
    assert reply.trace == tokens


def test_statistics_follow_from_the_trace(pair: safedraft.Pair) -> None:
    reply = pair.generate("hi", sampling=safedraft.SamplingParams(max_new_tokens=50))
    figures, trace = reply.statistics, reply.trace
    assert figures.tokens == len(trace)
    assert figures.matches == sum(token.matched for token in trace)
    assert figures.blocks == figures.target_passes == trace[-1].block + 1
    assert figures.tokens <= figures.target_rows <= figures.tokens + figures.draft_passes
    assert figures.draft_passes >= figures.tokens
    assert len(figures.match_ratios) == len(trace) // 7
    assert 0 < figures.target_seconds + figures.draft_seconds < figures.seconds
    assert 0 < figures.first_token_seconds < figures.seconds
    assert all(0 <= b.block - a.block <= 1 for a, b in pairwise(trace))
    assert set(reply.to_dict()) == {"text", "finish_reason", "warnings", "statistics", "trace"}


def with_start_token(pair: safedraft.Pair) -> tuple[safedraft.SamplingParams, list[int]]:
    """Sampling whose reply has the control token START inside, and the ids of that reply."""
    for seed in range(40):
        sampling = safedraft.SamplingParams(max_new_tokens=60, temperature=5, seed=seed)
        reply = pair.generate("hi", sampling=sampling, rule="target_only")
        ids = [token.id for token in reply.trace]
        if START in ids:
            return sampling, ids
    raise AssertionError("no seed samples the token")


def test_a_stop_string_that_is_a_control_token_ends_the_reply(pair: safedraft.Pair) -> None:
    sampling, ids = with_start_token(pair)
    for stop in ({"stop": ("<|start|>",)}, {"stop_token_ids": (START,)}):
        reply = pair.generate("hi", sampling=sampling.replace(**stop), rule="target_only")
        assert [token.id for token in reply.trace] == ids[: ids.index(START) + 1]
        assert reply.finish_reason == "stop"
        assert "<|start|>" not in reply.text


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"stop": ("<|start|>user",)}, r"never found: '<\|start\|>' in it is a control token"),
        ({"stop_token_ids": (1000,)}, r"stop_token_ids: 1000: ids end at \d+"),
    ],
)
def test_a_stop_that_can_never_be_found_is_refused(
    pair: safedraft.Pair, sampling: Any, message: str
) -> None:
    with pytest.raises(SafeDraftError, match=message):
        pair.stream("hi", sampling=safedraft.SamplingParams(**sampling))


def test_a_seed_repeats_a_reply_and_is_reported(pair: safedraft.Pair) -> None:
    sampled = safedraft.SamplingParams(max_new_tokens=30, temperature=1.2)
    first = pair.generate("hi", sampling=sampled)
    seed = first.statistics.seed
    again = pair.generate("hi", sampling=sampled.model_copy(update={"seed": seed}))
    assert again.text == first.text
    assert pair.generate("hi", sampling=sampled).statistics.seed != seed


def test_prompts_of_a_string_equal_those_of_a_user_message(pair: safedraft.Pair) -> None:
    assert pair.prompts("hi") == pair.prompts([USER])
    with pytest.raises(SafeDraftError, match="the prompt is empty"):
        pair.prompts(" ")


def test_a_raw_text_is_continued(pair: safedraft.Pair) -> None:
    prompts = pair.text_prompts("Once upon")
    ids = encode_text(pair.target.tokenizer, "Once upon")
    assert prompts == safedraft.Prompts(ids, ids)
    assert pair.target.tokenizer.decode(prompts.target) == "Once upon"
    sampling = safedraft.SamplingParams(max_new_tokens=5)
    assert pair.stream_ids(prompts, sampling=sampling).drain().trace
    guarded = replace(pair, draft=replace(pair.draft, system="Be safe."))
    assert guarded.text_prompts("Once upon") == prompts


def test_each_model_adds_its_own_beginning_token_to_a_raw_text(
    pair: safedraft.Pair, tmp_path: Path
) -> None:
    save_tokenizer(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path, bos_token="<|start|>")
    other.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", START)]
    )
    begun = replace(pair, draft=replace(pair.draft, tokenizer=other)).text_prompts("hi")
    assert begun.draft == [START, *begun.target]


@pytest.mark.parametrize(
    ("prompt", "prefill", "first"),
    [
        ("hi", "", "intersection"),
        ([*BEGUN, USER], "", "intersection"),
        ("hi", "Sure,", "union"),
        (BEGUN, "", "union"),
    ],
)
def test_a_begun_turn_may_start_in_another_scheme(
    pair: safedraft.Pair, prompt: Any, prefill: str, first: str
) -> None:
    config = safedraft.SSDConfig(prefill_scheme="union")
    own = replace(pair, config=config)
    for stream in (
        pair.stream(prompt, prefill=prefill, config=config),
        own.stream(prompt, prefill=prefill),
    ):
        assert next(stream).scheme == first
    assert next(pair.stream(prompt, prefill=prefill)).scheme == "intersection"
    with pytest.raises(SafeDraftError, match="prefill_scheme: token ids do not say"):
        pair.stream_ids(pair.prompts(BEGUN), config=config)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_log_probabilities_change_no_token(pair: safedraft.Pair, temperature: float) -> None:
    sampling = safedraft.SamplingParams(max_new_tokens=30, temperature=temperature, seed=1)
    plain = pair.generate("hi", sampling=sampling)
    reply = pair.generate("hi", sampling=sampling, top_logprobs=3)
    assert [(t.id, t.text) for t in reply.trace] == [(t.id, t.text) for t in plain.trace]
    for token in reply.trace:
        assert token.logprob is not None
        assert token.logprob <= 0
        likely = [other.logprob for other in token.top_logprobs]
        assert likely == sorted(likely, reverse=True)
        assert 1 <= len(likely) <= 3
        assert sum(map(math.exp, likely)) < 1 + 1e-5
        own = [other.logprob for other in token.top_logprobs if other.id == token.id]
        assert own in ([], [token.logprob])
        assert token.top_logprobs[0].id == token.id or temperature
    assert {(token.logprob, token.top_logprobs) for token in plain.trace} == {(None, ())}


def test_zero_alternatives_leave_the_log_probability_of_the_token(pair: safedraft.Pair) -> None:
    reply = pair.generate("hi", top_logprobs=0)
    assert all(token.logprob is not None and not token.top_logprobs for token in reply.trace)


def test_log_probabilities_are_computed_only_on_request(
    pair: safedraft.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safedraft.core.decide.log_probabilities", None)
    assert pair.generate("hi").trace


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_logprobs": -1}, "top_logprobs must be 0 or more, not -1"),
    ],
)
def test_impossible_log_probabilities_are_rejected(
    pair: safedraft.Pair, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SafeDraftError, match=message):
        pair.generate("hi", **options)


def test_a_trace_in_json_has_log_probabilities_only_on_request(pair: safedraft.Pair) -> None:
    sampling = safedraft.SamplingParams(max_new_tokens=3)
    (token, *_) = pair.generate("hi", sampling=sampling, top_logprobs=1).to_dict()["trace"]
    assert set(token["top_logprobs"][0]) == {"id", "text", "logprob"}
    assert token["logprob"] == token["top_logprobs"][0]["logprob"]
    (token, *_) = pair.generate("hi", sampling=sampling).to_dict()["trace"]
    assert not {"logprob", "top_logprobs"} & set(token)


def test_target_only_equals_greedy_decoding_in_transformers(pair: safedraft.Pair) -> None:
    import torch

    sampling = safedraft.SamplingParams(max_new_tokens=25)
    reply = pair.generate("hi", sampling=sampling, rule="target_only")
    prompt = pair.prompts([USER]).target
    own = pair.target.model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=25, eos_token_id=256, pad_token_id=0
    )
    assert [token.id for token in reply.trace] == own[0, len(prompt) :].tolist()
    assert reply.statistics.draft_passes == 0
    assert {token.scheme for token in reply.trace} == {None}


def test_a_prompt_longer_than_the_context_is_rejected_before_any_forward_pass(
    pair: safedraft.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(pair.target.model), "forward", None)
    with pytest.raises(
        safedraft.PromptTooLongError, match=r"6\d\d tokens .* has 512: shorten"
    ) as raised:
        pair.generate("x" * 600)
    length = len(pair.prompts([{"role": "user", "content": "x" * 600}]).target)
    again = pickle.loads(pickle.dumps(raised.value))
    for error in (raised.value, again):
        assert isinstance(error, SafeDraftError)
        assert str(error) == str(raised.value)
        assert (error.tokens, error.context_length) == (length, 512)


@pytest.mark.parametrize(("over", "refused"), [(-1, False), (0, True)])
def test_a_prompt_needs_room_for_one_token(pair: safedraft.Pair, over: int, refused: bool) -> None:
    prompts = safedraft.Prompts([1], [1] * (512 + over))
    if refused:
        with pytest.raises(safedraft.PromptTooLongError):
            pair.stream_ids(prompts)
    else:
        assert len(pair.stream_ids(prompts).drain().trace) == 1


def test_replies_end_where_the_context_ends(pair: safedraft.Pair) -> None:
    reply = pair.generate("x" * 480, sampling=safedraft.SamplingParams(max_new_tokens=300))
    length = reply.statistics.prompt_tokens + reply.statistics.tokens
    assert length <= 512
    assert reply.finish_reason == "length" or length < 512


@pytest.mark.parametrize(
    ("prompts", "message"),
    [(([], [1]), "prompt is empty"), (([1], [999]), "outside its vocabulary, 0 to 263")],
)
def test_invalid_prompt_ids_are_rejected(pair: safedraft.Pair, prompts: Any, message: str) -> None:
    with pytest.raises(SafeDraftError, match=message):
        pair.stream_ids(safedraft.Prompts(*prompts))


def test_models_without_tokenizer_decode_ids(tmp_path: Path) -> None:
    for seed, name in enumerate(("target", "draft")):
        save_model(tmp_path / name, seed)
    bare = safedraft.load_pair(target=str(tmp_path / "target"), draft=str(tmp_path / "draft"))
    reply = bare.stream_ids(
        safedraft.Prompts([1, 2], [3]), sampling=safedraft.SamplingParams(max_new_tokens=9)
    ).drain()
    assert len(reply.trace) == 9
    assert reply.text == ""
    with pytest.raises(SafeDraftError, match="has no tokenizer"):
        bare.generate("hi")
    with pytest.raises(SafeDraftError, match="has no tokenizer"):
        bare.text_prompts("hi")
    with pytest.raises(SafeDraftError, match="stop strings need a tokenizer"):
        bare.stream_ids(safedraft.Prompts([1], [1]), sampling=safedraft.SamplingParams(stop=("a",)))
