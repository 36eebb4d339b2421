"""The loop: tables of blocks, invariants, and agreement with the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from conftest import RandomModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.core.decode import Step, decode
from safedraft.core.errors import BrokenModel
from safedraft.core.reference import composite_distribution, reference_decode
from safedraft.core.sampling import log_probabilities
from safedraft.engines.scripted import ScriptedSession

VOCABULARY, END = 16, 15


def says(text: Sequence[int], prompt: int) -> ScriptedSession:
    """A model that wants to go on with ``text`` after a prompt of that length, whatever came."""

    def script(ids: Sequence[int]) -> Tensor:
        logits = torch.linspace(1, 0, VOCABULARY)
        logits[text[(len(ids) - prompt) % len(text)]] = 9.0
        return logits

    return ScriptedSession(script)


def run(
    target: ScriptedSession,
    draft: ScriptedSession,
    limit: int,
    prompts: tuple[int, int] = (3, 3),
    end: tuple[int, ...] = (),
    **constants: float,
) -> list[Step]:
    config = SSDConfig(sample_space_size=1, **constants)  # type: ignore[arg-type]
    sampling = SamplingParams(max_new_tokens=limit)
    return list(decode(target, draft, [0] * prompts[0], [0] * prompts[1], config, sampling, end))


def shape(steps: list[Step]) -> str:
    """Blocks parted by bars; ``x`` for a match, ``.`` for a correction."""
    text = ""
    for before, step in zip([None, *steps], steps, strict=False):
        bar = "|" if before is not None and before.block != step.block else ""
        text += bar + ("x" if step.matched else ".")
    return text


@pytest.mark.parametrize(
    ("name", "draft_says", "limit", "end", "blocks"),
    [
        # T = 3: a block that matches throughout carries its last distribution over: T + 1 tokens
        ("all matched", [1, 2, 3, 4, 5, 6, 7, 8], 8, (), "xxxx|xxxx"),
        ("first rejected", [9, 2, 3, 4, 5, 6, 7, 8], 8, (), ".|xxxx|xxx"),
        ("last rejected", [1, 2, 9, 4, 5, 6, 7, 8], 8, (), "xx.|xxxx|x"),
        ("carried position rejected", [1, 2, 3, 9, 5, 6, 7, 8], 8, (), "xxx.|xxxx"),
        ("none matched", [9, 9, 9, 9, 9, 9, 9, 9], 4, (), ".|.|.|."),
        ("end token inside a block", [1, 2, 3, 4, 5, 6, 7, 8], 8, (2,), "xx"),
        ("end token at a carried position", [1, 2, 3, 4, 5, 6, 7, 8], 8, (4,), "xxxx"),
        ("length limit inside a block", [1, 2, 3, 4, 5, 6, 7, 8], 6, (), "xxxx|xx"),
        ("length limit after one", [1, 2, 3, 4, 5, 6, 7, 8], 1, (), "x"),
        ("end token as a correction", [1, 9, 3, 4, 5, 6, 7, 8], 8, (2,), "x."),
    ],
)
def test_blocks(
    name: str, draft_says: list[int], limit: int, end: tuple[int, ...], blocks: str
) -> None:
    target, draft = says([1, 2, 3, 4, 5, 6, 7, 8], 3), says(draft_says, 3)
    steps = run(target, draft, limit, end=end)
    assert shape(steps) == blocks, name
    assert [step.token for step in steps] == list(range(1, len(steps) + 1))


def test_the_switch_falls_inside_a_block() -> None:
    # Two misses fill a bin; the union that follows lets the draft through from the next position.
    target, draft = says([1], 1), says([2], 1)
    steps = run(target, draft, 6, (1, 1), bin_size=2, draft_tokens=4, alpha_union=2.0)
    assert [step.scheme[0] for step in steps if step.scheme] == list("iiuuii")
    assert [step.token for step in steps] == [1, 1, 2, 2, 1, 1]
    assert shape(steps) == ".|.|xx.|."


def test_probabilities_and_strength_are_those_of_the_token() -> None:
    step = run(says([1], 1), says([2], 1), 1, (1, 1))[0]
    logits = torch.linspace(1, 0, VOCABULARY)
    wanted, other = logits.clone(), logits.clone()
    wanted[1], other[2] = 9.0, 9.0
    assert step.target_probability == pytest.approx(wanted.softmax(-1)[1].item())
    assert step.draft_probability == pytest.approx(other.softmax(-1)[1].item())
    assert (step.scheme, step.strength) == (Scheme.INTERSECTION, 0.3)


@pytest.mark.parametrize("draft_tokens", [1, 2, 3, 5, 8])
def test_no_token_is_computed_twice_and_caches_hold_what_is_committed(draft_tokens: int) -> None:
    target_model, draft_model = (RandomModel(seed, VOCABULARY, 0.7) for seed in (1, 2))
    target, draft = target_model.session(), draft_model.session()
    prompts = [1, 2, 3, 4], [5, 6]
    config, sampling = SSDConfig(draft_tokens=draft_tokens), SamplingParams(max_new_tokens=60)
    output = []
    for step in decode(target, draft, *prompts, config, sampling):
        for session, prompt in zip((target, draft), prompts, strict=True):
            known = session.ids[: len(prompt) + len(output)]
            assert known == [*prompt, *output][: len(known)]
        output.append(step.token)
    for session, prompt in zip((target, draft), prompts, strict=True):
        fed = sum(count for call, count in session.calls if call == "forward")
        back = sum(count for call, count in session.calls if call == "rewind")
        assert fed - back == len(session.ids)
        assert len(prompt) + len(output) - 1 <= len(session.ids) <= len(prompt) + len(output)
        assert session.calls[0][1] >= len(prompt)
        assert all(count <= draft_tokens + 1 for _, count in session.calls[1:])


def test_the_draft_is_asked_at_every_position() -> None:
    seen: list[int] = []

    def watching(ids: Sequence[int]) -> Tensor:
        seen.append(len(ids))
        return torch.linspace(1, 0, VOCABULARY)

    target = ScriptedSession(lambda ids: torch.linspace(1, 0, VOCABULARY))
    sampling = SamplingParams(max_new_tokens=20)
    steps = list(decode(target, ScriptedSession(watching), [1], [1, 2], SSDConfig(), sampling))
    assert all(step.matched for step in steps)
    assert sorted(set(seen)) == list(range(2, 22))


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("culprit", ["target", "draft"])
@pytest.mark.parametrize("after", [0, 9])
def test_logits_that_are_no_numbers_stop_everything(
    broken: float, culprit: str, after: int
) -> None:
    model = RandomModel(1, VOCABULARY)

    def script(ids: Sequence[int]) -> Tensor:
        logits = model(ids).clone()
        if len(ids) > after:
            logits[3] = broken
        return logits

    sessions = {name: model.session(name) for name in ("target", "draft")}
    sessions[culprit] = ScriptedSession(script, culprit)
    sampling = SamplingParams(max_new_tokens=30)
    with pytest.raises(BrokenModel, match=f"{culprit} gave NaN or infinite logits"):
        list(decode(*sessions.values(), [1], [1], SSDConfig(), sampling))


@settings(max_examples=150, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 999), st.integers(0, 999)),
    shared=st.floats(0, 1),
    size=st.integers(2, 48),
    prompts=st.tuples(
        st.lists(st.integers(0, 1), min_size=1, max_size=12),
        st.lists(st.integers(0, 1), min_size=1, max_size=12),
    ),
    limit=st.integers(1, 200),
    temperature=st.sampled_from([0.0, 0.7, 1.3]),
    cuts=st.sampled_from([{}, {"top_k": 3}]),
    config=st.builds(
        SSDConfig,
        draft_tokens=st.integers(1, 8),
        draft_confidence=st.sampled_from([0.0, 0.3, 0.9]),
        draft_growth=st.sampled_from([0.0, 0.5, 2.0]),
        bin_size=st.integers(1, 9),
        sample_space_size=st.integers(1, 12),
        kappa=st.integers(1, 3),
        alpha_intersection=st.sampled_from([0.0, 0.3, 0.6, 1.5]),
        alpha_union=st.sampled_from([0.5, 0.8, 2.0]),
        threshold=st.sampled_from([0.0, 0.5, 0.6, 1.0]),
        initial_scheme=st.sampled_from(Scheme),
        union_bins=st.integers(1, 4),
    ),
)
def test_fast_equals_slow(
    seeds: tuple[int, int],
    shared: float,
    size: int,
    prompts: tuple[list[int], list[int]],
    limit: int,
    temperature: float,
    cuts: dict[str, int],
    config: SSDConfig,
) -> None:
    target, draft = (RandomModel(seed, size, shared) for seed in seeds)
    sampling = SamplingParams(max_new_tokens=limit, temperature=temperature, seed=11, **cuts)
    end = {size - 1}
    fast = decode(target.session(), draft.session(), *prompts, config, sampling, end)
    slow = reference_decode(target, draft, *prompts, config, sampling, end)
    assert [(s.scheme, s.strength, s.token) for s in fast] == list(slow)


@settings(max_examples=60, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 999), st.integers(0, 999)),
    size=st.integers(2, 40),
    temperature=st.sampled_from([0.0, 0.7, 1.3]),
    top_k=st.sampled_from([0, 3]),
    config=st.builds(
        SSDConfig,
        sample_space_size=st.integers(1, 12),
        alpha_intersection=st.sampled_from([0.0, 0.3, 1.5]),
        alpha_union=st.sampled_from([0.8, 2.0]),
        threshold=st.sampled_from([0.0, 0.6, 1.0]),
        bin_size=st.integers(1, 5),
    ),
)
def test_log_probabilities_are_those_of_the_composite(
    seeds: tuple[int, int], size: int, temperature: float, top_k: int, config: SSDConfig
) -> None:
    target, draft = (RandomModel(seed, size, 0.5) for seed in seeds)
    sampling = SamplingParams(max_new_tokens=20, temperature=temperature, top_k=top_k, seed=3)
    cuts = SamplingParams() if sampling.greedy else sampling
    ids = [0]
    for step in decode(target.session(), draft.session(), ids, ids, config, sampling):
        assert step.scores is not None
        assert step.scheme is not None
        p, q = ((m(ids) / (temperature or 1)).softmax(-1).tolist() for m in (target, draft))
        expected = composite_distribution(p, q, step.scheme, step.strength, config, cuts)
        found = log_probabilities(step.scores, step.token, sampling, size)
        chances = {id: math.exp(logprob) for id, logprob in found.most_likely}
        assert [chances.get(id, 0.0) for id in range(size)] == pytest.approx(expected, abs=1e-5)
        assert math.exp(found.chosen) == chances[step.token] > 0
        assert list(chances.values()) == sorted(chances.values(), reverse=True)
        ids = [*ids, step.token]


def test_an_unsure_draft_ends_early() -> None:
    def script(ids: Sequence[int]) -> Tensor:
        logits = torch.zeros(VOCABULARY)
        logits[1] = 9.0 if len(ids) % 3 else 0.5  # sure of two tokens in three
        return logits

    target, draft = says([1], 1), ScriptedSession(script)
    steps = run(target, draft, 9, (1, 1), draft_tokens=8, draft_confidence=0.5)
    assert shape(steps) == "xxxx|xxx|xx"
    assert [count for call, count in target.calls if call == "forward"] == [4, 3, 3]


def test_a_draft_is_as_long_as_the_last_block_was_good() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]
    target, draft = says(text, 1), says([9, *text[1:]], 1)
    steps = run(target, draft, 11, (1, 1), draft_tokens=8, draft_growth=2.0)
    assert shape(steps) == ".|xxx|xxxxxxx"
    assert [count for call, count in target.calls if call == "forward"] == [9, 3, 7]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_block_length_changes_no_token(temperature: float) -> None:
    target, draft = (RandomModel(seed, 40, 0.7) for seed in (3, 4))
    sampling = SamplingParams(max_new_tokens=120, temperature=temperature, seed=5)
    replies = {
        tuple(
            step.token
            for step in decode(
                target.session(), draft.session(), [1], [1], SSDConfig(draft_tokens=t), sampling
            )
        )
        for t in range(1, 9)
    }
    assert len(replies) == 1
