"""Plain blocks: what they hold, and that speculative decoding is the target's own text."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
import torch
from conftest import RandomModel
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decode import says, shape
from test_sampling import surprise
from torch import Tensor

from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.core.decode import Decoder, Step
from safedraft.defenses import ensemble_weight, risk_switch, speculative, target_only
from safedraft.defenses.blockwise import Rule, blockwise


class TargetsOwn(Rule):
    def scores(self, p: Tensor, q: Tensor) -> Tensor:
        return p


without_bonus = blockwise(lambda config: TargetsOwn(), bonus=False)


@pytest.mark.parametrize(
    ("decoder", "draft_says", "limit", "end", "blocks"),
    [
        # T = 3; a bonus is no match, as the draft did not propose it
        (speculative, [1, 2, 3, 4, 5, 6, 7, 8], 8, (), "xxx.|xxx."),
        (speculative, [9, 2, 3, 4, 5, 6, 7, 8], 8, (), ".|xxx.|xxx"),
        (speculative, [1, 2, 9, 4, 5, 6, 7, 8], 8, (), "xx.|xxx.|x"),
        (speculative, [9, 9, 9, 9, 9, 9, 9, 9], 4, (), ".|.|.|."),
        (speculative, [1, 2, 3, 4, 5, 6, 7, 8], 8, (2,), "xx"),
        (speculative, [1, 2, 3, 4, 5, 6, 7, 8], 8, (4,), "xxx."),
        (speculative, [1, 9, 3, 4, 5, 6, 7, 8], 8, (2,), "x."),
        (speculative, [1, 2, 3, 4, 5, 6, 7, 8], 6, (), "xxx.|xx"),
        (speculative, [1, 2, 3, 4, 5, 6, 7, 8], 3, (), "xxx"),
        (speculative, [1, 2, 3, 4, 5, 6, 7, 8], 1, (), "x"),
        (without_bonus, [1, 2, 3, 4, 5, 6, 7, 8], 8, (), "xxx|xxx|xx"),
        (without_bonus, [1, 2, 9, 4, 5, 6, 7, 8], 8, (), "xx.|xxx|xx"),
    ],
)
def test_blocks(
    decoder: Decoder, draft_says: list[int], limit: int, end: tuple[int, ...], blocks: str
) -> None:
    target, draft = says([1, 2, 3, 4, 5, 6, 7, 8], 3), says(draft_says, 2)
    sampling = SamplingParams(max_new_tokens=limit)
    steps = list(decoder(target, draft, [0] * 3, [0] * 2, SSDConfig(), sampling, end))
    assert shape(steps) == blocks
    assert [step.token for step in steps] == list(range(1, len(steps) + 1))
    assert len([call for call, _ in target.calls if call == "forward"]) == blocks.count("|") + 1


@pytest.mark.parametrize("draft_tokens", [1, 2, 3, 5])
@pytest.mark.parametrize("decoder", [speculative, ensemble_weight(), risk_switch([1])])
def test_no_token_is_computed_twice_and_caches_hold_what_is_committed(
    decoder: Decoder, draft_tokens: int
) -> None:
    target, draft = (RandomModel(seed, 16, 0.7).session() for seed in (1, 2))
    prompts = [1, 2, 3, 4], [5, 6]
    config, sampling = SSDConfig(draft_tokens=draft_tokens), SamplingParams(max_new_tokens=60)
    output: list[int] = []
    for step in decoder(target, draft, *prompts, config, sampling):
        for session, prompt in zip((target, draft), prompts, strict=True):
            known = session.ids[: len(prompt) + len(output)]
            assert known == [*prompt, *output][: len(known)]
        output.append(step.token)
    for session, prompt in zip((target, draft), prompts, strict=True):
        fed = sum(count for call, count in session.calls if call == "forward")
        back = sum(count for call, count in session.calls if call == "rewind")
        assert fed - back == len(session.ids) <= len(prompt) + len(output)
        assert all(count <= draft_tokens + 1 for _, count in session.calls[1:])


@settings(max_examples=80, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 999), st.integers(0, 999)),
    shared=st.floats(0, 1),
    limit=st.integers(1, 80),
    config=st.builds(
        SSDConfig,
        draft_tokens=st.integers(1, 6),
        draft_confidence=st.sampled_from([0.0, 0.4, 0.9]),
        draft_growth=st.sampled_from([0.0, 0.5, 2.0]),
    ),
)
def test_greedy_speculative_decoding_says_what_the_target_alone_says(
    seeds: tuple[int, int], shared: float, limit: int, config: SSDConfig
) -> None:
    target, draft = (RandomModel(seed, 24, shared) for seed in seeds)
    sampling = SamplingParams(max_new_tokens=limit)

    def run(decoder: Decoder) -> list[Step]:
        sessions = target.session(), draft.session()
        return list(decoder(*sessions, [1], [2, 3], config, sampling, {23}))

    fast, slow = run(speculative), run(target_only)
    assert [(s.token, s.target_probability) for s in fast] == [
        (s.token, pytest.approx(s.target_probability)) for s in slow
    ]


@pytest.mark.parametrize(
    ("draft_tokens", "confidence", "top_k"), [(1, 0.0, 0), (3, 0.5, 0), (2, 0.0, 3)]
)
def test_sampled_speculative_replies_are_distributed_as_the_targets(
    draft_tokens: int, confidence: float, top_k: int
) -> None:
    target, draft = (RandomModel(seed, 4, shared=0.4) for seed in (1, 2))
    config = SSDConfig(draft_tokens=draft_tokens, draft_confidence=confidence)
    sampling = SamplingParams(temperature=1.5, max_new_tokens=3, top_k=top_k)
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(3000):
        sessions = target.session(), draft.session()
        seeded = sampling.model_copy(update={"seed": seed})
        steps = speculative(*sessions, [0], [0], config, seeded)
        counts[tuple(step.token for step in steps)] += 1
    replies = list(product(range(4), repeat=3))
    chances = torch.ones(len(replies))
    for row, reply in enumerate(replies):
        for position, token in enumerate(reply):
            p = (target([0, *reply[:position]]) / 1.5).softmax(-1)
            if top_k:
                p = torch.where(p >= p.topk(top_k).values[-1], p, 0.0)
            chances[row] *= p[token] / p.sum()
    observed = torch.tensor([float(counts[reply]) for reply in replies])
    assert surprise(observed, chances) < 4
