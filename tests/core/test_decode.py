"""The loop: tables of blocks, invariants, agreement with the reference, and batches."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, ClassVar

import pytest
import torch
from helpers.decoding import (
    assert_no_token_twice,
    computed,
    decode_one,
    decode_together,
    request_of,
    shape,
    tokens_of,
)
from helpers.laws import surprise
from helpers.models import VOCABULARY, RandomModel, constant, says
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.core.decode import Batch, decode
from safedraft.core.errors import BrokenModelError, DecodingError, SafeDraftError
from safedraft.core.generation import Step, iterate
from safedraft.core.reference import composite_distribution, reference_decode, shift
from safedraft.core.request import Request
from safedraft.core.risk import RiskProbe
from safedraft.core.rows import Rows
from safedraft.core.rule import Rule, Scores, State
from safedraft.core.session import Pass
from safedraft.core.switch import Switch
from safedraft.engines.scripted import Script, ScriptedEngine
from safedraft.rules.easd import EASD, GuardedEASD
from safedraft.rules.ensemble import EnsembleWeight
from safedraft.rules.risk import Risk
from safedraft.rules.safedecoding import SafeDecoding
from safedraft.rules.sequoia import Sequoia
from safedraft.rules.speculative import Speculative
from safedraft.rules.ssd import SSD
from safedraft.rules.target_only import TargetOnly

SLOW = pytest.mark.slow


class LogitProbe(RiskProbe):
    """Reads the first logits, which scripts have in place of hidden states."""

    def read(self, hidden: Tensor) -> float:
        return super().read(hidden[: len(self.weight)])


RISK = LogitProbe(torch.linspace(-1, 1, 5), 0.0)

TEXT = [1, 2, 3, 4, 5, 6, 7, 8]
UNLIKE = [9] * 8


@pytest.mark.parametrize(
    ("name", "draft_says", "limit", "end", "blocks"),
    [
        # T = 3: a block that matches throughout carries its last distribution over: T + 1 tokens
        ("all matched", TEXT, 8, (), "xxxx|xxxx"),
        ("first rejected", [9, 2, 3, 4, 5, 6, 7, 8], 8, (), ".|xxxx|xxx"),
        ("last rejected", [1, 2, 9, 4, 5, 6, 7, 8], 8, (), "xx.|xxxx|x"),
        ("carried position rejected", [1, 2, 3, 9, 5, 6, 7, 8], 8, (), "xxx.|xxxx"),
        ("none matched", UNLIKE, 4, (), ".|.|.|."),
        ("end token inside a block", TEXT, 8, (2,), "xx"),
        ("end token at a carried position", TEXT, 8, (4,), "xxxx"),
        ("end token as a correction", [1, 9, 3, 4, 5, 6, 7, 8], 8, (2,), "x."),
        ("rejected end token", [1, 9, 3, 4, 5, 6, 7, 8], 5, (9,), "x.|xxx"),
        ("length limit inside a block", TEXT, 6, (), "xxxx|xx"),
        ("length limit after one", TEXT, 1, (), "x"),
    ],
)
@pytest.mark.parametrize("prompts", [(3, 3), (1, 1), (1, 6), (7, 2)])
def test_blocks(
    name: str,
    draft_says: list[int],
    limit: int,
    end: tuple[int, ...],
    blocks: str,
    prompts: tuple[int, int],
) -> None:
    target, draft = says(TEXT, prompts[0]), says(draft_says, prompts[1])
    ids = [0] * prompts[0], [0] * prompts[1]
    request = request_of(None, {"sample_space_size": 1}, ids, end, max_new_tokens=limit)
    engine = ScriptedEngine(target, draft)
    steps = [step for _, step in decode(engine, [request])]
    assert shape(steps) == blocks, name
    assert tokens_of(steps) == list(range(1, len(steps) + 1))
    assert [step.block for step in steps] == sorted(step.block for step in steps)
    for session, prompt in zip(engine.sessions, ids, strict=True):
        assert_no_token_twice(session, prompt, tokens_of(steps), 4)
    assert len(computed(engine.sessions[0])) == blocks.count("|") + 1


def test_drafts_stop_after_an_end_token() -> None:
    request = request_of(None, {"draft_tokens": 8}, end=[3], max_new_tokens=20)
    engine = ScriptedEngine(says(TEXT, 1), says(TEXT, 1))
    assert tokens_of([step for _, step in decode(engine, [request])]) == [1, 2, 3]
    # A draft that wants to end where the target does not is not asked any further either.
    target, draft = engine.sessions
    assert computed(target) == [4]
    assert computed(draft) == [1, 1, 1]


def test_the_switch_falls_inside_a_block() -> None:
    # Two misses fill a bin; the union that follows lets the draft through from the next position.
    constants = {"sample_space_size": 1, "bin_size": 2, "draft_tokens": 4, "alpha_union": 2.0}
    steps = decode_one(says([1], 1), says([2], 1), request_of(None, constants, max_new_tokens=6))
    assert [step.scheme[0] for step in steps if step.scheme] == list("iiuuii")
    assert tokens_of(steps) == [1, 1, 2, 2, 1, 1]
    assert shape(steps) == ".|.|xx.|."
    assert [step.match_ratio for step in steps] == [None, 0.0, None, 1.0, None, 0.0]


def test_probabilities_and_alpha_are_those_of_the_token() -> None:
    request = request_of(None, {"sample_space_size": 1}, max_new_tokens=1)
    (step,) = decode_one(says([1], 1), says([2], 1), request)
    logits = torch.linspace(1, 0, VOCABULARY)
    wanted, other = logits.clone(), logits.clone()
    wanted[1], other[2] = 9.0, 9.0
    assert step.target_probability == pytest.approx(wanted.softmax(-1)[1].item())
    assert step.draft_probability == pytest.approx(other.softmax(-1)[1].item())
    assert (step.scheme, step.alpha, step.threshold) == (Scheme.INTERSECTION, 0.3, 0.6)


@pytest.mark.parametrize("draft_tokens", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_is_computed_twice_and_caches_hold_what_is_committed(
    draft_tokens: int, temperature: float
) -> None:
    engine = ScriptedEngine(*(RandomModel(seed, VOCABULARY, 0.7) for seed in (1, 2)))
    prompts = [1, 2, 3, 4], [5, 6]
    constants = {"draft_tokens": draft_tokens}
    request = request_of(
        None, constants, prompts, max_new_tokens=60, temperature=temperature, seed=3
    )
    batch = Batch(engine)
    generation = batch.add(request)
    while not generation.ended:
        batch.step()
        reply = tokens_of(list(generation.steps))
        for session, prompt in zip(engine.sessions, prompts, strict=True):
            assert_no_token_twice(session, prompt, reply, draft_tokens + 1)
            assert len(prompt) + len(reply) - 1 <= len(session.ids) <= len(prompt) + len(reply)
    steps = list(generation.steps)
    assert generation.target_passes.passes == len(computed(engine.sessions[0]))
    assert generation.draft_passes.passes == len(computed(engine.sessions[1]))
    assert generation.target_passes.passes == steps[-1].block + 1 < len(steps)
    rows = sum(computed(engine.sessions[0])) - (len(prompts[0]) - 1)
    assert generation.target_passes.rows == rows >= len(steps)


def test_the_draft_is_asked_at_every_position() -> None:
    seen: list[int] = []

    def watching(ids: Sequence[int]) -> Tensor:
        seen.append(len(ids))
        return torch.linspace(1, 0, VOCABULARY)

    request = request_of(prompts=([1], [1, 2]), max_new_tokens=20)
    steps = decode_one(constant(torch.linspace(1, 0, VOCABULARY)), watching, request)
    assert all(step.matched for step in steps)
    assert sorted(set(seen)) == list(range(2, 22))


def test_a_draft_that_is_the_target_is_always_followed() -> None:
    model = RandomModel(1, 30, levels=1)
    for temperature in (0.0, 1.0):
        request = request_of(None, {}, temperature=temperature, seed=1, max_new_tokens=40)
        steps = decode_one(model, model, request)
        # A sampled token outside the intersection is still refused.
        assert all(step.matched for step in steps) or temperature
        assert {step.scheme for step in steps} == {Scheme.INTERSECTION} or temperature
        assert all(step.target_probability == step.draft_probability for step in steps)


CHOICES: dict[str, Sequence[Any]] = {
    "draft_tokens": range(1, 13),
    "draft_confidence": [0.0, 0.3, 0.9],
    "draft_growth": [0.0, 0.5, 2.0],
    "draft_tree_threshold": [1.0, 0.2, 0.02, 0.0],
    "draft_tree_stop": [0.0, 0.3],
    "draft_tree": [(), (), (2, 1, 0, 1), (1, 3, 0, 2), (3, 2, 2), (4,), (2, 2, 1, 0, 0, 1, 3)],
    "bin_size": range(1, 10),
    "sample_space_size": range(1, 13),
    "kappa": range(1, 4),
    "alpha_intersection": [0.0, 0.3, 0.6, 1.5],
    "alpha_union": [0.5, 0.8, 2.0],
    "threshold": [0.0, 0.5, 0.6, 1.0],
    "initial_scheme": [*Scheme],
    "union_bins": range(1, 5),
}


def configure(**values: Any) -> SSDConfig:
    """Constants with these values; those of trees that grow give way to a fixed tree."""
    if tree := values["draft_tree"]:
        values |= {"draft_tree_threshold": 1.0, "draft_tree_stop": 0.0}
        values |= {"draft_confidence": 0.0, "draft_growth": 0.0}
        values["draft_tokens"] = max(values["draft_tokens"], sum(tree))
    return SSDConfig(**values)


CONFIGS = st.builds(
    configure, **{name: st.sampled_from(values) for name, values in CHOICES.items()}
)
SHIFTS: list[dict[str, Any]] = [
    {},
    {"logit_bias": {0: -3.0, 1: 2.0}, "presence_penalty": 0.5},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.5, "repetition_penalty": 2.0},
    {"presence_penalty": -1.0, "frequency_penalty": -0.25, "repetition_penalty": 0.5},
]
PROMPT = st.lists(st.integers(0, 1), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 999), st.integers(0, 999)),
    shared=st.floats(0, 1),
    size=st.sampled_from([2, 5, 12, 39, 40, 41, 90, 400]),
    levels=st.sampled_from([1, 4, 64]),
    prompts=st.tuples(PROMPT, PROMPT),
    limit=st.integers(1, 60),
    temperature=st.sampled_from([0.0, 0.0, 0.05, 0.7, 1.3]),
    cuts=st.sampled_from([{}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.1}]),
    shifts=st.sampled_from(SHIFTS),
    config=CONFIGS,
)
def test_fast_equals_slow(
    seeds: tuple[int, int],
    shared: float,
    size: int,
    levels: int,
    prompts: tuple[list[int], list[int]],
    limit: int,
    temperature: float,
    cuts: dict[str, float],
    shifts: dict[str, Any],
    config: SSDConfig,
) -> None:
    if temperature == 0.05:
        # Where nothing of the sample space is left but zeros, they differ; and a cut between scores
        # that differ by less than float32 can say.
        alpha = min(config.alpha_intersection, 0.6)
        config, cuts = config.replace(kappa=1, alpha_intersection=alpha), {}
    target, draft = (RandomModel(seed, size, shared, levels=levels) for seed in seeds)
    sampling = SamplingParams(
        max_new_tokens=limit, temperature=temperature, seed=11, **cuts, **shifts
    )
    end = {size - 1}
    request = request_of(None, config, prompts, end, **sampling.model_dump())
    fast = decode_one(target, draft, request)
    slow = reference_decode(target, draft, *prompts, config, sampling, end)
    assert [(s.scheme, s.alpha, s.token, s.matched) for s in fast] == list(slow)


def grow_at_random(chance: random.Random) -> tuple[int, ...]:
    """A static tree of at most 12 nodes after the root, each with up to four children."""
    children: list[int] = []
    while len(children) <= sum(children) < 12:
        wanted = chance.choices(range(5), [3, 4, 3, 1, 1])[0]
        children.append(min(wanted, 12 - sum(children)))
    return tuple(children) if any(children) else (2, 1)


@SLOW
@pytest.mark.parametrize("seed", range(4))
def test_ten_thousand_trees_change_no_token_scheme_or_match(seed: int) -> None:
    chance = random.Random(seed)
    branched = 0
    while branched < 2500:
        size, drawn = chance.choice([2, 3, 5, 9, 12]), chance.random() < 0.5
        target, draft = (RandomModel(chance.randrange(999), size, chance.random()) for _ in "td")
        values = {name: chance.choice(values) for name, values in CHOICES.items()}
        config = configure(**values | {"draft_tree": grow_at_random(chance) if drawn else ()})
        if not config.branches:
            continue
        sampling = SamplingParams(
            max_new_tokens=chance.randint(1, 20),
            temperature=chance.choice([0.0, 0.5, 1.0]),
            seed=chance.randrange(999),
        )
        end = chance.sample(range(size), chance.randint(0, 2))
        steps = decode_one(target, draft, request_of(None, config, end=end, **dict(sampling)))
        slow = reference_decode(target, draft, [0], [0], config, sampling, end)
        decided = [(s.scheme, s.alpha, s.token, s.matched) for s in steps]
        assert decided == list(slow), (config, sampling)
        branched += 1


@settings(max_examples=12, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 999), st.integers(0, 999)),
    shared=st.sampled_from([0.4, 0.8]),
    levels=st.sampled_from([2, 64]),
    temperature=st.sampled_from([0.0, 0.7]),
    speeds=st.lists(
        st.fixed_dictionaries(
            {
                "draft_tokens": st.integers(1, 9),
                "draft_confidence": st.sampled_from([0.0, 0.3, 0.9]),
                "draft_growth": st.sampled_from([0.0, 0.5, 2.0]),
                "draft_tree_threshold": st.sampled_from([1.0, 0.2, 0.01]),
                "draft_tree_stop": st.sampled_from([0.0, 0.2]),
            }
        ),
        min_size=2,
        max_size=3,
    ),
    rule=st.sampled_from(["ssd", "speculative", "easd", "ssd_easd", "risk"]),
)
def test_how_many_tokens_are_drafted_changes_no_token_and_no_flag(
    seeds: tuple[int, int],
    shared: float,
    levels: int,
    temperature: float,
    speeds: list[dict[str, Any]],
    rule: str,
) -> None:
    # Sampled, a bonus token of the rule ``speculative`` takes other numbers than a drafted one.
    if rule == "speculative" and temperature:
        rule = "ssd"
    kind = {
        "ssd": Mixed.ssd,
        "speculative": Mixed.speculative,
        "easd": Mixed.easd,
        "ssd_easd": Mixed.guarded,
        "risk": Mixed.risk,
    }[rule]
    target, draft = (RandomModel(seed, 30, shared, levels=levels) for seed in seeds)
    decided = []
    for speed in speeds:
        request = kind(speed, max_new_tokens=25, temperature=temperature, seed=5)
        steps = decode_one(target, draft, request)
        flags = [None if rule == "speculative" else step.matched for step in steps]
        decided.append(
            [
                (step.token, flag, step.scheme, step.alpha, step.match_ratio, step.signal)
                for step, flag in zip(steps, flags, strict=True)
            ]
        )
    assert all(one == decided[0] for one in decided)


class Mixed:
    """Requests of every rule, with constants under which it does something."""

    EASD: ClassVar = {"entropy_threshold": 1.0, "overlap_tokens": 4, "overlap_threshold": 0.5}

    @staticmethod
    def ssd(constants: dict[str, Any] | None = None, **options: Any) -> Request:
        own = {"sample_space_size": 3, "bin_size": 3, "alpha_union": 1.5}
        return request_of(None, {**own, **(constants or {})}, **options)

    @staticmethod
    def speculative(constants: dict[str, Any] | None = None, **options: Any) -> Request:
        return request_of(Speculative(), constants, **options)

    @classmethod
    def easd(cls, constants: dict[str, Any] | None = None, **options: Any) -> Request:
        return request_of(EASD(), {**cls.EASD, **(constants or {})}, **options)

    @classmethod
    def guarded(cls, constants: dict[str, Any] | None = None, **options: Any) -> Request:
        own = {**cls.EASD, "bin_size": 2, "sample_space_size": 3}
        return request_of(GuardedEASD(), {**own, **(constants or {})}, **options)

    @staticmethod
    def risk(constants: dict[str, Any] | None = None, **options: Any) -> Request:
        own = {"bin_size": 2, "reading_bins": 2, "harmless_below": 0.3, "risky_above": 0.7}
        return request_of(Risk(), {**own, **(constants or {})}, probe=RISK, **options)

    @staticmethod
    def ensemble(constants: dict[str, Any] | None = None, **options: Any) -> Request:
        return request_of(EnsembleWeight(), constants, **options)

    @staticmethod
    def safedecoding(constants: dict[str, Any] | None = None, **options: Any) -> Request:
        return request_of(SafeDecoding(), **options)

    @staticmethod
    def target_only(constants: dict[str, Any] | None = None, **options: Any) -> Request:
        return request_of(TargetOnly(), **options)

    @classmethod
    def all(cls) -> list[Request]:
        """Of every rule, one greedy and several sampled, each with other parameters."""
        kinds = [cls.ssd, cls.speculative, cls.easd, cls.guarded, cls.risk, cls.ensemble]
        kinds += [cls.safedecoding, cls.target_only]
        samplings: list[dict[str, Any]] = [
            {},
            {"presence_penalty": 0.6, "repetition_penalty": 1.3},
            {"temperature": 0.7, "top_k": 3},
            {"temperature": 1.2, "top_p": 0.8},
            {"temperature": 1.0, "min_p": 0.2, "frequency_penalty": 0.4},
            {"temperature": 0.05},
        ]
        requests = []
        for index, (kind, sampling) in enumerate(
            (kind, sampling) for sampling in samplings for kind in kinds
        ):
            requests.append(
                kind(
                    {
                        "draft_tokens": index % 5 + 1,
                        "draft_confidence": index % 3 * 0.2,
                        "draft_tree_threshold": 0.1 if index % 4 else 1.0,
                    },
                    prompts=([index % 4] * (index % 7 + 1), [1] * (index % 3 + 1)),
                    end=[] if index % 3 else [5, 6],
                    max_new_tokens=(index * 7) % 29 + 1,
                    top_logprobs=None if index % 2 else 3,
                    seed=index,
                    **sampling,
                )
            )
        return requests


@pytest.mark.parametrize(
    ("size", "levels"), [(24, 2), *(pytest.param(*big, marks=SLOW) for big in ((60, 2), (120, 0)))]
)
def test_a_mixed_batch_is_each_request_alone(size: int, levels: int) -> None:
    target, draft = (RandomModel(seed, size, 0.6, levels=levels) for seed in (1, 2))
    requests = Mixed.all()
    together = decode_together(target, draft, requests)
    for request, steps in zip(requests, together, strict=True):
        alone = decode_one(target, draft, request)
        assert steps == alone, request.rule.name
        for one, other in zip(steps, alone, strict=True):
            assert (one.logprobs is None) == (request.top_logprobs is None)
            if one.logprobs is not None:
                assert other.logprobs is not None
                assert one.logprobs.chosen == pytest.approx(other.logprobs.chosen, abs=1e-5)
                assert [id for id, _ in one.logprobs.most_likely] == [
                    id for id, _ in other.logprobs.most_likely
                ]
    assert len({len(steps) for steps in together}) > 5


def test_a_request_that_joins_later_changes_nothing() -> None:
    target, draft = (RandomModel(seed, 30, 0.6) for seed in (1, 2))
    requests = [Mixed.ssd(max_new_tokens=30, prompts=([n], [n])) for n in range(3)]
    batch = Batch(ScriptedEngine(target, draft))
    first = batch.add(requests[0])
    batch.step()
    batch.step()
    second, third = batch.add(requests[1]), batch.add(requests[2])
    batch.step()
    batch.remove(third)
    removed = len(third.steps)
    for generation, request in ((first, requests[0]), (second, requests[1])):
        assert list(iterate(batch, generation)) == decode_one(target, draft, request)
    assert (third.ended, len(third.steps)) == (True, removed)


def test_the_engine_is_handed_the_passes_of_a_block_together() -> None:
    model = says(TEXT, 1)
    requests = [request_of(max_new_tokens=8)] * 5
    engine = ScriptedEngine(model, model)
    replies = Counter(index for index, _ in decode(engine, requests))
    assert replies == dict.fromkeys(range(5), 8)
    # Per block of T + 1 = 4: three passes of the draft, one of the target, and one of the draft for
    # the position that is carried over.
    assert engine.batches == [5] * 10


@pytest.mark.parametrize(
    ("requests", "rows"),
    # Each drafts as many tokens as fit, up to its own number, and at least one.
    [(1, [4, 4]), (2, [8, 8]), (4, [8] * 4), (9, [18] * 4)],
)
def test_many_requests_draft_fewer_tokens_each(requests: int, rows: list[int]) -> None:
    class Watched(ScriptedEngine):
        def forward(self, passes: Sequence[Pass]) -> list[Tensor]:
            kept.append(sum(one.keep for one in passes))
            return super().forward(passes)

    kept: list[int] = []
    model = says(TEXT, 1)
    batch = Batch(Watched(model, model), rows_at_once=8)
    generations = [batch.add(request_of(max_new_tokens=8)) for _ in range(requests)]
    while not all(generation.ended for generation in generations):
        batch.step()
    assert [count for count in kept if count > requests] == rows
    (alone,) = decode_together(model, model, [request_of(max_new_tokens=8)])
    for generation in generations:
        assert [step.token for step in generation.steps] == [step.token for step in alone]
        assert [step.matched for step in generation.steps] == [step.matched for step in alone]


@pytest.mark.parametrize(
    "broken", [math.nan, math.inf, pytest.param(-math.inf, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("culprit", ["target", "draft"])
@pytest.mark.parametrize("after", [0, 9])
def test_broken_logits_end_their_own_request_and_no_other(
    broken: float, culprit: str, after: int
) -> None:
    models = {
        name: RandomModel(seed, VOCABULARY, 0.6) for seed, name in enumerate(("target", "draft"))
    }

    def script(ids: Sequence[int]) -> Tensor:
        logits = models[culprit](ids).clone()
        if ids[0] == 1 and len(ids) > after:
            logits[3] = broken
        return logits

    whole = models["target"], models["draft"]
    scripts: dict[str, Script] = {**models, culprit: script}
    requests = [request_of(prompts=([n], [n]), max_new_tokens=30) for n in range(3)]
    batch = Batch(ScriptedEngine(scripts["target"], scripts["draft"]))
    generations = [batch.add(request) for request in requests]
    while not all(generation.ended for generation in generations):
        batch.step()
    errors = [generation.error for generation in generations]
    assert [error is None for error in errors] == [True, False, True]
    assert f"{culprit} gave NaN or infinite logits" in str(errors[1])
    for generation, request in zip(generations, requests, strict=True):
        expected = decode_one(*whole, request)
        if generation.error:
            expected = expected[: len(generation.steps)]
            assert len(expected) <= after
        assert list(generation.steps) == expected
    with pytest.raises(BrokenModelError, match=f"{culprit} gave NaN or infinite logits"):
        decode_one(scripts["target"], scripts["draft"], requests[1])


@pytest.mark.parametrize("culprit", ["target", "draft"])
def test_a_pass_that_fails_ends_all_its_requests_and_leaves_none_half_decoded(
    culprit: str,
) -> None:
    models = {
        name: RandomModel(seed, VOCABULARY, 0.6) for seed, name in enumerate(("target", "draft"))
    }
    calls = itertools.count()

    def script(ids: Sequence[int]) -> Tensor:
        if next(calls) == 12:
            raise RuntimeError("out of memory")
        return models[culprit](ids)

    batch = Batch(ScriptedEngine(**{**models, culprit: script}))
    requests = [request_of(prompts=([n], [n]), max_new_tokens=20) for n in range(3)]
    requests[1] = replace(requests[1], rule=TargetOnly(), config=TargetOnly().config())
    generations = [batch.add(request) for request in requests[:2]]
    while not all(generation.ended for generation in generations):
        batch.step()
    failed = [
        str(generation.error) == "a pass of the models failed: RuntimeError: out of memory"
        for generation in generations
    ]
    assert failed == [True, culprit == "target"]  # the target alone has no draft's passes
    error = generations[0].error
    assert error is not None
    assert error.__traceback__ is error.__cause__ is None  # which would keep what the pass held
    assert "in script" in error.__notes__[0]
    assert isinstance(error, DecodingError)
    assert error.kind == "RuntimeError"
    assert "in script" in error.place
    assert "RuntimeError: out of memory" not in error.place  # logs show it, and no prompt
    generations.append(batch.add(requests[2]))
    while not generations[2].ended:
        batch.step()
    for generation, request in zip(generations, requests, strict=True):
        expected = decode_one(models["target"], models["draft"], request)
        whole = expected if generation.error is None else expected[: len(generation.steps)]
        assert list(generation.steps) == whole


class Faulty(EnsembleWeight):
    """A rule that fails from the fourth time on that it is asked."""

    asked: ClassVar[Iterator[int]] = itertools.count()

    def scores(self, states: Sequence[State], rows: Rows) -> Scores:
        if next(self.asked) >= 3:
            raise KeyError("place")
        return super().scores(states, rows)


def test_a_rule_that_fails_leaves_no_other_request_half_decoded() -> None:
    models = [RandomModel(seed, VOCABULARY, 0.6) for seed in (0, 1)]
    other, faulty, later = (
        request_of(rule, prompts=([n], [n]), max_new_tokens=20)
        for n, rule in enumerate((SSD(), Faulty(), SSD()))
    )
    batch = Batch(ScriptedEngine(*models))
    generations = [batch.add(other), batch.add(faulty)]
    with pytest.raises(KeyError, match="place"):
        list(iterate(batch, generations[1]))
    assert [str(one.error) for one in generations] == ["decoding failed: KeyError: 'place'"] * 2
    begun = list(generations[0].steps)
    assert begun == decode_one(*models, other)[: len(begun)]
    assert list(iterate(batch, batch.add(later))) == decode_one(*models, later)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), temperature=st.sampled_from([0.0, 0.8]), config=CONFIGS)
def test_steps_report_the_switch_in_force(seed: int, temperature: float, config: SSDConfig) -> None:
    target, draft = (RandomModel(seed + n, 20, 0.5) for n in (0, 1))
    end = [19]
    request = request_of(
        None, config, end=end, max_new_tokens=60, temperature=temperature, seed=seed
    )
    steps = decode_one(target, draft, request)
    switch = Switch(config)
    for step in steps:
        assert (step.scheme, step.alpha, step.threshold) == (
            switch.scheme,
            switch.alpha,
            switch.threshold,
        )
        ratio = None if step.token in end else switch.observe(step.matched)
        assert step.match_ratio == ratio


@settings(max_examples=12, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 999), st.integers(0, 999)),
    size=st.integers(2, 60),
    temperature=st.sampled_from([0.0, 0.7, 1.3]),
    top_k=st.sampled_from([0, 3]),
    config=CONFIGS,
)
def test_log_probabilities_are_those_of_the_composite(
    seeds: tuple[int, int], size: int, temperature: float, top_k: int, config: SSDConfig
) -> None:
    target, draft = (RandomModel(seed, size, 0.5, levels=64) for seed in seeds)
    request = request_of(
        None,
        config,
        max_new_tokens=20,
        temperature=temperature,
        top_k=top_k,
        seed=3,
        top_logprobs=size,
    )
    cuts = SamplingParams() if request.sampling.greedy else request.sampling
    ids = [0]
    for step in decode_one(target, draft, request):
        assert step.scheme is not None
        assert step.logprobs is not None
        p, q = ((m(ids) / (temperature or 1)).softmax(-1).tolist() for m in (target, draft))
        expected = composite_distribution(p, q, step.scheme, step.alpha, config, cuts)
        chances = {id: math.exp(logprob) for id, logprob in step.logprobs.most_likely}
        assert [chances.get(id, 0.0) for id in range(size)] == pytest.approx(expected, abs=1e-5)
        assert math.exp(step.logprobs.chosen) == chances[step.token] > 0
        assert list(chances.values()) == sorted(chances.values(), reverse=True)
        ids = [*ids, step.token]


def test_an_unsure_draft_ends_early() -> None:
    def script(ids: Sequence[int]) -> Tensor:
        logits = torch.zeros(VOCABULARY)
        logits[1] = 9.0 if len(ids) % 3 else 0.5  # sure of two tokens in three
        return logits

    constants = {"sample_space_size": 1, "draft_tokens": 8, "draft_confidence": 0.5}
    engine = ScriptedEngine(says([1], 1), script)
    steps = [step for _, step in decode(engine, [request_of(None, constants, max_new_tokens=9)])]
    assert shape(steps) == "xxxx|xxx|xx"
    assert computed(engine.sessions[0]) == [4, 3, 3]


def test_a_draft_is_as_long_as_the_last_block_was_good() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]
    constants = {"sample_space_size": 1, "draft_tokens": 8, "draft_growth": 2.0}
    engine = ScriptedEngine(says(text, 1), says([9, *text[1:]], 1))
    steps = [step for _, step in decode(engine, [request_of(None, constants, max_new_tokens=11)])]
    assert shape(steps) == ".|xxx|xxxxxxx"
    assert computed(engine.sessions[0]) == [9, 3, 7]


TEMPERATURE = 0.9


def enumerated(
    config: SSDConfig, target: RandomModel, draft: RandomModel, **cuts: Any
) -> dict[tuple[tuple[int, bool], ...], float]:
    """Chance of every two-token reply with its matches, from the reference: the scheme of the
    second position follows from whether the first one matched."""
    sampling = SamplingParams(temperature=TEMPERATURE, **cuts)

    def both(ids: list[int], scheme: str) -> tuple[list[float], list[float]]:
        alpha = config.alpha_union if scheme == "union" else config.alpha_intersection
        own = (shift(m(ids), [0], ids[1:], sampling) for m in (target, draft))
        p, q = ((logits / TEMPERATURE).softmax(-1).tolist() for logits in own)
        return q, composite_distribution(p, q, scheme, alpha, config, sampling)

    chances = {}
    q, f = both([0], config.initial_scheme)
    for first in range(target.vocabulary):
        # With bins of one position, a match leads to intersection and a miss to union.
        for flag, scheme in ((True, "intersection"), (False, "union")):
            chance = joint(q[first], f[first], flag)
            r, g = both([0, first], scheme)
            for second, again in product(range(target.vocabulary), (True, False)):
                key = (first, flag), (second, again)
                chances[key] = chance * joint(r[second], g[second], again)
    return chances


def joint(q: float, f: float, matched: bool) -> float:
    """The chance that a token is chosen as a match, or otherwise."""
    return min(q, f) if matched else f - min(q, f)


@pytest.mark.parametrize(
    ("scheme", "cuts", "drafted", "count"),
    [
        ("intersection", {}, 2, 400),
        pytest.param("union", {"top_k": 3}, 1, 800, marks=SLOW),
        pytest.param("intersection", {}, 1, 10000, marks=SLOW),
        pytest.param("union", {}, 1, 10000, marks=SLOW),
        pytest.param("union", {"top_k": 3}, 2, 10000, marks=SLOW),
        pytest.param("union", {"top_p": 0.8}, 2, 10000, marks=SLOW),
        pytest.param("intersection", {"min_p": 0.2}, 2, 10000, marks=SLOW),
        ("union", {"presence_penalty": 2.0, "repetition_penalty": 1.5}, 2, 400),
        pytest.param("union", {"frequency_penalty": 2.0}, 1, 10000, marks=SLOW),
        pytest.param("intersection", {"presence_penalty": -2.0}, 2, 10000, marks=SLOW),
        pytest.param("intersection", {}, (3, 2, 1), 6000, marks=SLOW),
        pytest.param("union", {"top_k": 3}, (2, 2), 6000, marks=SLOW),
        pytest.param("intersection", {}, "grown", 6000, marks=SLOW),
        pytest.param("union", {"top_k": 3}, "grown", 6000, marks=SLOW),
    ],
)
def test_two_token_replies_and_matches_are_distributed_as_enumerated(
    scheme: str, cuts: dict[str, float], drafted: int | str | tuple[int, ...], count: int
) -> None:
    target, draft = (RandomModel(seed, 5, shared=0.4) for seed in (1, 2))
    config = SSDConfig(
        bin_size=1,
        sample_space_size=2,
        alpha_min=0.3,
        initial_scheme=scheme,
        draft_tokens=drafted if isinstance(drafted, int) else 6,
        draft_tree=drafted if isinstance(drafted, tuple) else (),
        draft_tree_threshold=0.05 if drafted == "grown" else 1.0,
    )
    requests = [
        request_of(None, config, max_new_tokens=2, temperature=TEMPERATURE, seed=seed, **cuts)
        for seed in range(count)
    ]
    replies = decode_together(target, draft, requests)
    counts = Counter(tuple((step.token, step.matched) for step in steps) for steps in replies)
    chances = enumerated(config, target, draft, **cuts)
    assert sum(chances.values()) == pytest.approx(1)
    possible = [reply for reply, chance in chances.items() if chance > 1e-12]
    assert counts.keys() <= set(possible)
    observed = torch.tensor([float(counts[reply]) for reply in possible])
    expected = torch.tensor([chances[reply] for reply in possible])
    assert surprise(observed, expected) < 4


LARGEST = 2**63 - 1
"""The largest number that a tensor of whole numbers holds."""


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "rule",
    [SSD, Risk, EASD, GuardedEASD, EnsembleWeight, SafeDecoding, Speculative, Sequoia, TargetOnly],
)
def test_every_whole_number_may_be_the_largest(rule: type[Rule], temperature: float) -> None:
    """A number beyond what it counts is no limit, and a larger one than tensors hold is refused."""
    target, draft = (RandomModel(seed, 9, shared=0.4) for seed in (1, 2))
    probe = RISK if rule is Risk else None
    fields = {name for name, value in rule().config() if type(value) is int}
    samples = [{"top_k": LARGEST}, {"stop_token_ids": LARGEST}]
    cases = [({name: LARGEST}, {}) for name in fields] + [({}, one) for one in samples]
    for constants, counts in cases:
        sampling = {"max_new_tokens": 12, "temperature": temperature, "seed": 3} | counts
        request = request_of(rule(), constants, probe=probe, **sampling)
        assert len(decode_one(target, draft, request)) == 12, (constants, counts)
        more = {name: value + 1 for name, value in (constants | counts).items()}
        with pytest.raises(SafeDraftError, match="must be less than"):
            rule().config(**more) if constants else SamplingParams(**more)


def test_a_step_is_a_plain_record() -> None:
    (step,) = decode_one(says([1], 1), says([1], 1), request_of(max_new_tokens=1))
    assert isinstance(step, Step)
    assert (step.token, step.matched, step.block, step.signal) == (1, True, 0, None)
