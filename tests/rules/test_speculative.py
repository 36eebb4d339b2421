"""Speculative decoding: its blocks, and that its text is the target's own."""

from __future__ import annotations

from collections import Counter
from itertools import product

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
from helpers.laws import TOLERANCE, law_of, marginal, surprise
from helpers.models import RandomModel, logits_of, says
from hypothesis import given, settings
from hypothesis import strategies as st

from safedraft.core.config import DraftingConfig
from safedraft.core.decode import decode
from safedraft.core.rule import Rule
from safedraft.engines.scripted import ScriptedEngine
from safedraft.rules.ensemble import EnsembleWeight
from safedraft.rules.speculative import Speculative
from safedraft.rules.target_only import TargetOnly

TEXT = [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("rule", "draft_says", "limit", "end", "blocks"),
    [
        # T = 3; a bonus is no match, as the draft did not propose it
        (Speculative(), TEXT, 8, (), "xxx.|xxx."),
        (Speculative(), [9, 2, 3, 4, 5, 6, 7, 8], 8, (), ".|xxx.|xxx"),
        (Speculative(), [1, 2, 9, 4, 5, 6, 7, 8], 8, (), "xx.|xxx.|x"),
        (Speculative(), [9] * 8, 4, (), ".|.|.|."),
        (Speculative(), TEXT, 8, (2,), "xx"),
        (Speculative(), TEXT, 8, (4,), "xxx."),
        (Speculative(), [1, 9, 3, 4, 5, 6, 7, 8], 8, (2,), "x."),
        (Speculative(), TEXT, 6, (), "xxx.|xx"),
        (Speculative(), TEXT, 3, (), "xxx"),
        (Speculative(), TEXT, 1, (), "x"),
        (TargetOnly(), TEXT, 3, (), ".|.|."),
    ],
)
def test_blocks(
    rule: Rule, draft_says: list[int], limit: int, end: tuple[int, ...], blocks: str
) -> None:
    prompts = [0] * 3, [0] * 2
    engine = ScriptedEngine(says(TEXT, 3), says(draft_says, 2))
    request = request_of(rule, rule.config(), prompts, end, max_new_tokens=limit)
    steps = [step for _, step in decode(engine, [request])]
    assert shape(steps) == blocks
    assert tokens_of(steps) == list(range(1, len(steps) + 1))
    assert len(computed(engine.sessions[0])) == blocks.count("|") + 1
    if rule == TargetOnly():
        assert computed(engine.sessions[1]) == []


@pytest.mark.parametrize("draft_tokens", [1, 2, 3, 5])
@pytest.mark.parametrize("rule", [Speculative(), EnsembleWeight()])
def test_no_token_is_computed_twice_and_caches_hold_what_is_committed(
    rule: Rule, draft_tokens: int
) -> None:
    engine = ScriptedEngine(*(RandomModel(seed, 16, 0.7) for seed in (1, 2)))
    prompts = [1, 2, 3, 4], [5, 6]
    constants = {"draft_tokens": draft_tokens}
    request = request_of(rule, constants, prompts, refusals=[1], max_new_tokens=60)
    reply = tokens_of([step for _, step in decode(engine, [request])])
    for session, prompt in zip(engine.sessions, prompts, strict=True):
        assert_no_token_twice(session, prompt, reply, draft_tokens + 1)
        assert len(prompt) + len(reply) - 2 <= len(session.ids) <= len(prompt) + len(reply)


@settings(max_examples=25, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 999), st.integers(0, 999)),
    shared=st.floats(0, 1),
    levels=st.sampled_from([1, 64]),
    size=st.sampled_from([24, 120]),
    limit=st.integers(1, 40),
    config=st.builds(
        DraftingConfig,
        draft_tokens=st.integers(1, 6),
        draft_confidence=st.sampled_from([0.0, 0.4, 0.9]),
        draft_growth=st.sampled_from([0.0, 0.5, 2.0]),
    ),
)
def test_greedily_it_says_what_the_target_alone_says(
    seeds: tuple[int, int],
    shared: float,
    levels: int,
    size: int,
    limit: int,
    config: DraftingConfig,
) -> None:
    target, draft = (RandomModel(seed, size, shared, levels=levels) for seed in seeds)
    options = {"prompts": ([1], [2, 3]), "end": {size - 1}, "max_new_tokens": limit}
    fast = decode_one(target, draft, request_of(Speculative(), config, **options))  # type: ignore[arg-type]
    slow = decode_one(target, draft, request_of(TargetOnly(), **options))  # type: ignore[arg-type]
    ids = [1]
    for step, alone in zip(fast, slow, strict=True):
        logits = target(ids)
        assert step.token == alone.token == int((logits == logits.max()).nonzero()[0])
        assert step.target_probability == pytest.approx(alone.target_probability)
        ids.append(step.token)


@pytest.mark.usefixtures("lattice")
@pytest.mark.parametrize(
    ("cuts", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.5}, [4 / 7, 3 / 7, 0, 0]),
    ],
)
def test_a_drafted_position_has_the_targets_law(
    cuts: dict[str, float], expected: list[float]
) -> None:
    target, draft = logits_of([0.4, 0.3, 0.2, 0.1]), logits_of([0.1, 0.1, 0.1, 0.7])
    request = request_of(Speculative(), temperature=1, **cuts)
    law = law_of(request, target, draft)
    assert marginal(law, 4) == pytest.approx(expected, abs=TOLERANCE)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("draft_tokens", "confidence", "top_k", "count"),
    [
        (2, 0.5, 0, 400),
        pytest.param(1, 0.0, 0, 4000, marks=SLOW),
        pytest.param(3, 0.5, 0, 4000, marks=SLOW),
        pytest.param(2, 0.0, 3, 4000, marks=SLOW),
    ],
)
def test_sampled_replies_are_distributed_as_the_targets(
    draft_tokens: int, confidence: float, top_k: int, count: int
) -> None:
    target, draft = (RandomModel(seed, 4, shared=0.4) for seed in (1, 2))
    constants = {"draft_tokens": draft_tokens, "draft_confidence": confidence}
    options = {"temperature": 1.5, "max_new_tokens": 3, "top_k": top_k}
    requests = [request_of(Speculative(), constants, seed=n, **options) for n in range(count)]
    replies = decode_together(target, draft, requests)
    counts = Counter(tuple(tokens_of(steps)) for steps in replies)
    possible = list(product(range(4), repeat=3))
    chances = torch.ones(len(possible))
    for row, reply in enumerate(possible):
        for position, token in enumerate(reply):
            p = (target([0, *reply[:position]]) / 1.5).softmax(-1)
            if top_k:
                p = torch.where(p >= p.topk(top_k).values[-1], p, 0.0)
            chances[row] *= p[token] / p.sum()
    assert surprise(torch.tensor([float(counts[reply]) for reply in possible]), chances) < 4


@pytest.mark.parametrize("rule", [Speculative(), TargetOnly()])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bonus_reports_the_targets_log_probabilities(rule: Rule, temperature: float) -> None:
    model = RandomModel(1, 12)
    options = {"max_new_tokens": 8, "temperature": temperature, "seed": 2, "top_logprobs": 3}
    steps = decode_one(model, model, request_of(rule, **options))  # type: ignore[arg-type]
    assert any(step.draft_probability is None for step in steps)
    ids = [0]
    for step in steps:
        logs = (model(ids) / (temperature or 1)).log_softmax(-1)
        assert step.logprobs is not None
        assert step.logprobs.chosen == pytest.approx(float(logs[step.token]), abs=1e-5)
        assert [id for id, _ in step.logprobs.most_likely] == logs.topk(3).indices.tolist()
        ids.append(step.token)
