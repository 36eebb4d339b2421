"""EASD: the target's runner-up where both models are unsure and agree, alone and under SSD.

Expectations are written out from the definition: entropies by sums, best tokens by sorting.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.decoding import decode_one, request_of, start
from helpers.laws import TOLERANCE, law_of, marginal, place_of, rows_of
from helpers.models import RandomModel, constant, logits_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safedraft.core.config import SamplingParams, Scheme
from safedraft.core.decide import Candidate, decide, propose
from safedraft.core.generation import Step
from safedraft.core.reference import composite_distribution, composite_scores
from safedraft.core.switch import Switch
from safedraft.rules.easd import EASD, EASDConfig, GuardedEASD, GuardedEASDConfig, GuardedState

SENSITIVE = {"entropy_threshold": 1.0, "overlap_tokens": 3, "overlap_threshold": 0.5}
SIZE = 8


def order(logits: Tensor) -> list[int]:
    values = logits.tolist()
    return sorted(range(len(values)), key=lambda token: (-values[token], token))


def entropy(logits: Tensor) -> float:
    return -sum(p * math.log(p) for p in logits.double().softmax(-1).tolist() if p)


def is_unsure(target: Tensor, draft: Tensor, config: EASDConfig) -> bool:
    count = min(config.overlap_tokens, len(target))
    common = len({*order(target)[:count]} & {*order(draft)[:count]})
    sure = min(entropy(target), entropy(draft)) <= config.entropy_threshold
    return not sure and common >= config.overlap_threshold * count


def cut(mass: list[float], sampling: SamplingParams) -> list[float]:
    """Top-k and top-p of weights, normalized."""
    ranked = sorted(range(len(mass)), key=lambda token: (-mass[token], token))
    ranked = [token for token in ranked[: sampling.top_k or None] if mass[token] > 0]
    total, kept, reached = sum(mass[token] for token in ranked), [], 0.0
    for token in ranked:
        if sampling.top_p < 1 and reached >= sampling.top_p * total:
            break
        kept.append(token)
        reached += mass[token]
    return [mass[token] / reached if token in kept else 0.0 for token in range(len(mass))]


# Both unsure (1.3 nats and more), the same three best tokens, and both like token 0 best.
TARGET = logits_of([0.30, 0.25, 0.20, 0.10, 0.05, 0.04, 0.03, 0.03])
AGREEING = logits_of([0.40, 0.15, 0.20, 0.10, 0.05, 0.04, 0.03, 0.03])
OTHER_BEST = logits_of([0.20, 0.25, 0.30, 0.10, 0.05, 0.04, 0.03, 0.03])
SURE = logits_of([0.93, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01])
APART = logits_of([0.25, 0.03, 0.03, 0.04, 0.05, 0.10, 0.25, 0.25])


@pytest.mark.parametrize(
    ("name", "target", "draft", "constants", "token"),
    [
        ("unsure and agreeing", TARGET, AGREEING, {}, 1),
        ("another best token", TARGET, OTHER_BEST, {}, 0),
        ("the draft is sure", TARGET, SURE, {}, 0),
        ("the target is sure", SURE, AGREEING, {}, 0),
        ("too little overlap", TARGET, APART, {}, 0),
        ("enough overlap", TARGET, APART, {"overlap_threshold": 1 / 3}, 1),
        ("no overlap is needed", TARGET, APART, {"overlap_threshold": 0.0}, 1),
        ("entropy at its threshold", TARGET, TARGET, {"entropy_threshold": 9.0}, 0),
        ("more tokens than there are", TARGET, AGREEING, {"overlap_tokens": 99}, 1),
        ("one vocabulary apart", torch.zeros(100), torch.zeros(100), {"overlap_tokens": 60}, 1),
    ],
)
def test_greedy_tokens(
    name: str, target: Tensor, draft: Tensor, constants: dict[str, float], token: int
) -> None:
    own = {**SENSITIVE, **constants}
    request = request_of(EASD(), own, max_new_tokens=1)
    (step,) = decode_one(constant(target), constant(draft), request)
    assert step.token == token, name
    assert step.signal is is_unsure(target, draft, EASDConfig(**own))  # type: ignore[arg-type]


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([5, 40, 150]),
    levels=st.sampled_from([2, 64]),
    shared=st.sampled_from([0.5, 0.9]),
    constants=st.fixed_dictionaries(
        {
            "entropy_threshold": st.sampled_from([0.0, 0.8, 1.5]),
            "overlap_tokens": st.sampled_from([1, 4, 60]),
            "overlap_threshold": st.sampled_from([0.0, 0.5, 1.0]),
            "draft_tokens": st.integers(1, 5),
        }
    ),
)
def test_greedy_replies(
    seed: int, size: int, levels: int, shared: float, constants: dict[str, Any]
) -> None:
    target, draft = (RandomModel(seed + n, size, shared, seed, levels) for n in (1, 2))
    request = request_of(EASD(), constants, max_new_tokens=20)
    ids = [0]
    for step in decode_one(target, draft, request):
        p, q = target(ids), draft(ids)
        penalized = is_unsure(p, q, EASDConfig(**constants))
        best = [token for token in order(p) if not (penalized and token == order(q)[0])]
        assert (step.token, step.signal) == (best[0], penalized)
        assert step.matched is (step.token == order(q)[0])
        assert (step.scheme, step.threshold, step.match_ratio) == (None, None, None)
        ids.append(step.token)


@pytest.mark.usefixtures("lattice")
@pytest.mark.parametrize(
    ("draft", "cuts", "temperature"),
    [
        pytest.param(AGREEING, {"top_p": 0.6}, 1.0, marks=pytest.mark.slow),
        (AGREEING, {"top_k": 4}, 0.4),  # the entropies are those at 1, above the threshold
        pytest.param(OTHER_BEST, {}, 1.0, marks=pytest.mark.slow),
        pytest.param(SURE, {}, 1.0, marks=pytest.mark.slow),
    ],
)
def test_a_sampled_position_has_the_penalized_law(
    draft: Tensor, cuts: dict[str, float], temperature: float
) -> None:
    request = request_of(EASD(), SENSITIVE, temperature=temperature, **cuts)
    law = law_of(request, TARGET, draft)
    p = (TARGET / temperature).softmax(-1).tolist()
    if is_unsure(TARGET, draft, EASDConfig(**SENSITIVE)):  # type: ignore[arg-type]
        p[order(draft)[0]] = 0.0
    expected = cut(p, request.sampling)
    assert marginal(law, SIZE) == pytest.approx(expected, abs=TOLERANCE)
    q = (draft / temperature).softmax(-1).tolist()
    accepted = [min(pair) for pair in zip(expected, q, strict=True)]
    assert marginal(law, SIZE, followed=True) == pytest.approx(accepted, abs=TOLERANCE)


@pytest.mark.parametrize("temperature", [0.01, 0.05])
def test_at_a_low_temperature_the_runner_up_stands_however_unlikely(temperature: float) -> None:
    # At these temperatures every probability but the best token's is 0 in float32.
    p = torch.zeros(60)
    p[50], p[30] = 9.0, 4.0
    request = request_of(
        EASD(),
        {"entropy_threshold": 0.0, "overlap_tokens": 1},
        temperature=temperature,
        seed=1,
        max_new_tokens=4,
        top_logprobs=2,
    )
    steps = decode_one(constant(p), constant(p), request)
    assert [step.token for step in steps] == [30] * 4
    assert all(step.logprobs.chosen == pytest.approx(0) for step in steps if step.logprobs)


# ---- under the guard of SSD


def guarded_state(
    observed: str, refusals: tuple[int, ...] = (), **constants: Any
) -> tuple[GuardedEASDConfig, GuardedState]:
    """A state after positions that matched (``x``) or did not."""
    own = {**SENSITIVE, "bin_size": 2, "sample_space_size": 3, **constants}
    config = GuardedEASDConfig(**own)
    state = start(request_of(GuardedEASD(), config, refusals=refusals))
    for match in observed:
        state.observe(match == "x")
    return config, state


GUARDS = [
    ("in intersection, after the first bin", "xx", (), {}, True),
    ("in the first bin", "x", (), {}, False),
    ("at the first position", "", (), {}, False),
    ("in union", "..", (), {}, False),
    ("starting in union", "", (), {"initial_scheme": "union"}, False),
    ("back in intersection", "..xx", (), {}, True),
    ("a refusal", "xx", (0,), {}, False),
    ("another token begins refusals", "xx", (1, 5), {}, True),
    ("nothing else is left", "xx", (), {"sample_space_size": 1}, False),
]


@pytest.mark.parametrize(("name", "observed", "refusals", "constants", "penalized"), GUARDS)
def test_where_a_penalty_is_allowed(
    name: str, observed: str, refusals: tuple[int, ...], constants: dict[str, Any], penalized: bool
) -> None:
    config, state = guarded_state(observed, refusals, **constants)
    rule = GuardedEASD()
    request = request_of(rule, config, refusals=refusals)
    p, q = place_of(TARGET), place_of(AGREEING)
    (proposal,) = propose(q.ranked, [request], [0])
    (decision,) = decide([Candidate(request, state, 0, proposal, p)])
    assert (decision.signal, decision.token) == (penalized, int(penalized)), name
    assert decision.followed is not penalized
    assert decision.matched  # the flag is that of F, whose best token is the draft's


@pytest.mark.usefixtures("lattice")
@pytest.mark.parametrize(("name", "observed", "refusals", "constants", "penalized"), GUARDS)
@pytest.mark.parametrize("alpha", [0.3, pytest.param(1.5, marks=pytest.mark.slow)])
def test_token_and_flag_of_a_sampled_position_have_their_laws(
    name: str,
    observed: str,
    refusals: tuple[int, ...],
    constants: dict[str, Any],
    penalized: bool,
    alpha: float,
) -> None:
    own = {**constants, "alpha_intersection": alpha, "alpha_min": alpha}
    config, state = guarded_state(observed, refusals, **own)
    request = request_of(GuardedEASD(), config, refusals=refusals, temperature=0.8)
    law = law_of(request, TARGET, AGREEING, lambda: state)
    p, q = ((logits / 0.8).softmax(-1).tolist() for logits in (TARGET, AGREEING))
    assert state.scheme is not None
    scores = composite_scores(p, q, state.scheme, state.alpha, config)
    mass = [max(scores.get(token, 0.0), 0.0) for token in range(SIZE)]
    without = [0.0 if token == 0 else weight for token, weight in enumerate(mass)]
    penalized = penalized and sum(without) > 0
    f = composite_distribution(p, q, state.scheme, state.alpha, config, request.sampling)
    expected = cut(without if penalized else mass, request.sampling)
    assert marginal(law, SIZE) == pytest.approx(expected, abs=TOLERANCE), name
    followed = [min(pair) for pair in zip(expected, q, strict=True)]
    assert marginal(law, SIZE, followed=True) == pytest.approx(followed, abs=TOLERANCE)
    # The flag is that of the decision without a penalty: its probability is Σ min(q, F).
    matched = sum(min(pair) for pair in zip(f, q, strict=True))
    assert sum(marginal(law, SIZE, matched=True)) == pytest.approx(matched, abs=TOLERANCE)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("refusals", [(), tuple(range(10))])
def test_replies_keep_to_the_guards_and_the_switch_sees_no_penalty(
    temperature: float, refusals: tuple[int, ...]
) -> None:
    config = GuardedEASDConfig(**{**SENSITIVE, "bin_size": 3, "sample_space_size": 4})  # type: ignore[arg-type]
    penalties = 0
    for seed in range(5):
        target, draft = (RandomModel(2 * seed + n, 20, 0.6, seed) for n in (1, 2))
        request = request_of(
            GuardedEASD(),
            config,
            refusals=refusals,
            max_new_tokens=30,
            temperature=temperature,
            seed=seed,
        )
        switch, ids = Switch(config), [0]
        for step in decode_one(target, draft, request):
            assert (step.scheme, step.alpha) == (switch.scheme, switch.alpha)
            best = order(draft(ids))[0]
            if step.signal:
                penalties += 1
                assert step.scheme is Scheme.INTERSECTION
                assert switch.decided >= config.bin_size
                assert best not in refusals
                assert step.token != best
                assert is_unsure(target(ids), draft(ids), config)
            if not temperature:
                _assert_flag_of_the_composite(step, target(ids), draft(ids), config)
            switch.observe(step.matched)
            ids.append(step.token)
    assert penalties > 3


def _assert_flag_of_the_composite(
    step: Step, target: Tensor, draft: Tensor, config: GuardedEASDConfig
) -> None:
    p, q = target.softmax(-1).tolist(), draft.softmax(-1).tolist()
    assert step.scheme is not None
    scores = composite_scores(p, q, step.scheme, step.alpha, config)
    ranked = sorted(scores, key=lambda token: (-scores[token], token))
    assert step.matched is (ranked[0] == order(draft)[0])
    if step.signal:
        ranked = [token for token in ranked if token != order(draft)[0]]
    assert step.token == ranked[0]


def test_a_penalty_ends_a_block_and_is_still_a_match() -> None:
    constants = {**SENSITIVE, "bin_size": 1, "sample_space_size": 3, "draft_tokens": 4}
    request = request_of(GuardedEASD(), constants, max_new_tokens=4)
    steps = decode_one(constant(TARGET), constant(AGREEING), request)
    assert [step.token for step in steps] == [0, 1, 1, 1]
    assert [step.matched for step in steps] == [True] * 4
    assert [step.match_ratio for step in steps] == [1.0] * 4
    assert [step.block for step in steps] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("entropy_threshold", -1.0),
        ("entropy_threshold", math.inf),
        ("overlap_tokens", 0),
        ("overlap_threshold", 1.5),
    ],
)
def test_constants_that_make_no_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        GuardedEASDConfig.model_validate({name: value})


def test_entropies_above_the_threshold_are_looked_at_only_where_tokens_overlap() -> None:
    rows = rows_of([TARGET, TARGET], [AGREEING, APART])
    request = request_of(EASD(), SENSITIVE)
    scores = EASD().scores([EASD().start(request.config, request.context)] * 2, rows)
    assert scores.signals == [True, False]
