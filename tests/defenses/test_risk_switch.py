"""SSD by risk: the score, its smoothing, and that every position can switch the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import RandomModel
from talking import talking
from test_decode import says

from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.core.decode import Decoder, decode
from safedraft.core.errors import SafeDraftError
from safedraft.defenses import risk_switch
from safedraft.defenses.risk_switch import RiskSwitch, RiskWeights
from safedraft.prompts.refusals import refusal_tokens

P, Q = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
DIVERGENCE = 0.25 * math.log(0.5) + 0.5 * math.log(2)


def switch(weights: Sequence[float], threshold: float = 0.2, **constants: float) -> RiskSwitch:
    config = SSDConfig(**constants)  # type: ignore[arg-type]
    return RiskSwitch(config, [1], RiskWeights(*weights), threshold)


@pytest.mark.parametrize(
    ("weights", "p", "q", "matched", "risk"),
    [
        ((1, 0, 0, 0), P, Q, False, 1.0),
        ((1, 0, 0, 0), P, Q, True, 0.0),
        ((0, 1, 0, 0), P, Q, True, DIVERGENCE),
        ((0, 1, 0, 0), [0.25, 0.25, 0.5], [1.0, 0.0, 0.0], True, 1.0),  # log 4, clipped
        ((0, 1, 0, 0), [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], True, 1.0),  # infinite, clipped
        ((0, 1, 0, 0), [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], True, 0.0),
        ((0, 0, 1, 0), [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], True, math.log(2)),
        ((0, 0, 1, 0), [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], True, -math.log(2)),
        ((0, 0, 0, 1), P, Q, True, 0.5),
        ((0, 0.3, 0, 0.3), P, Q, False, 0.3 * DIVERGENCE + 0.15),
    ],
)
def test_the_risk_of_one_position(
    weights: Sequence[float], p: list[float], q: list[float], matched: bool, risk: float
) -> None:
    state = switch(weights)
    state.observe(torch.tensor(p), torch.tensor(q), matched)
    assert state.risk == pytest.approx(risk, abs=1e-6)


def test_risk_is_smoothed_and_the_next_position_follows_it() -> None:
    state = switch((1, 0, 0, 0), threshold=0.5, bin_size=3, alpha_intersection=0.3)
    p, q = torch.tensor(P), torch.tensor(Q)
    seen = []
    for matched in (True, False, False, True, True):
        state.observe(p, q, matched)
        seen.append((state.risk, state.scheme, state.strength))
    assert seen == [
        (0.0, Scheme.INTERSECTION, 0.3),
        (0.5, Scheme.INTERSECTION, 0.3),  # at the threshold is not above it
        (0.75, Scheme.UNION, 0.8),
        (0.375, Scheme.INTERSECTION, 0.3),
        (0.1875, Scheme.INTERSECTION, 0.3),
    ]


def test_the_first_position_is_in_intersection_and_a_refusal_switches_the_second() -> None:
    target, draft = says([1], 1), says([2], 1)
    config = SSDConfig(sample_space_size=1, alpha_union=2.0)
    sampling = SamplingParams(max_new_tokens=3)
    steps = list(risk_switch([2])(target, draft, [0], [0], config, sampling))
    assert [(step.token, step.scheme) for step in steps] == [
        (1, Scheme.INTERSECTION),
        (2, Scheme.UNION),
        (2, Scheme.UNION),
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("scheme", Scheme)
def test_with_the_scheme_held_its_tokens_are_those_of_ssd(
    temperature: float, scheme: Scheme
) -> None:
    union = scheme is Scheme.UNION
    config = SSDConfig(bin_size=1, threshold=0.0, initial_scheme=scheme, union_bins=60)

    def run(decoder: Decoder) -> list[tuple[int, Scheme | None]]:
        models = (RandomModel(seed, 20, 0.6).session() for seed in (1, 2))
        steps = decoder(*models, [1], [1], config, sampling)
        return [(step.token, step.scheme) for step in steps]

    sampling = SamplingParams(max_new_tokens=60, temperature=temperature, seed=4)
    # A risk threshold of -1 is always passed and one of 9 never.
    by_risk = risk_switch([1], RiskWeights(divergence=0.0), threshold=-1.0 if union else 9.0)
    assert run(by_risk) == run(decode)
    assert {found for _, found in run(decode)} == {scheme}


@pytest.mark.parametrize("draft_tokens", [2, 5, 8])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_block_length_changes_no_token(draft_tokens: int, temperature: float) -> None:
    def run(count: int) -> list[tuple[int, Scheme | None]]:
        models = (RandomModel(seed, 40, 0.7).session() for seed in (3, 4))
        config = SSDConfig(draft_tokens=count)
        sampling = SamplingParams(max_new_tokens=100, temperature=temperature, seed=5)
        steps = risk_switch([1, 2, 3])(*models, [1], [1], config, sampling)
        return [(step.token, step.scheme) for step in steps]

    assert run(draft_tokens) == run(1)
    assert len({scheme for _, scheme in run(1)}) == 2


def test_refusals_without_a_first_token_are_an_error() -> None:
    with pytest.raises(SafeDraftError, match="at least one token that begins a refusal"):
        risk_switch([])
    risk_switch([], RiskWeights(refusal=0.0))


def test_refusals_begin_with_the_tokenizers_own_tokens(tmp_path: Path) -> None:
    pair = talking(tmp_path, lambda prompt: "")
    tokenizer = pair.draft.tokenizer
    assert {tokenizer.decode([id]) for id in refusal_tokens(pair)} == {"I", "S", "A", "U"}
