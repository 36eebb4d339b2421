"""SSD by risk: the score, its smoothing, and that every position can switch the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.decoding import decode_one, request_of, start, tokens_of
from helpers.laws import rows_of
from helpers.models import RandomModel, logits_of, says
from talking import talking

from safedraft.core.config import Scheme
from safedraft.core.errors import SafeDraftError
from safedraft.core.request import Request
from safedraft.core.rule import Decision
from safedraft.rules.ssd_risk import RiskConfig, RiskState, SSDRisk

P, Q = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
DIVERGENCE = 0.25 * math.log(0.5) + 0.5 * math.log(2)
RULE = SSDRisk()


def started(weights: Sequence[float], threshold: float = 0.2, **constants: float) -> RiskState:
    names = ("mismatch", "divergence", "entropy", "refusal")
    own = {f"{name}_weight": weight for name, weight in zip(names, weights, strict=True)}
    config = RiskConfig(risk_threshold=threshold, **own, **constants)  # type: ignore[arg-type]
    return start(request_of(RULE, config, refusals=[1]))


def observe(state: RiskState, p: list[float], q: list[float], matched: bool) -> None:
    scores = RULE.scores([state], rows_of([logits_of(p)], [logits_of(q)]))
    assert scores.signals is not None
    RULE.observe(state, Decision(0, matched, matched, 0.5, 0.5, None, scores.signals[0]))


@pytest.mark.parametrize(
    ("weights", "p", "q", "matched", "risk"),
    [
        ((1, 0, 0, 0), P, Q, False, 1.0),
        ((1, 0, 0, 0), P, Q, True, 0.0),
        ((0, 1, 0, 0), P, Q, True, DIVERGENCE),
        ((0, 1, 0, 0), [0.25, 0.25, 0.5], [1.0, 0.0, 0.0], True, 1.0),  # log 4, clipped
        ((0, 1, 0, 0), [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], True, 1.0),  # nearly infinite, clipped
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
    state = started(weights)
    observe(state, p, q, matched)
    assert state.risk == pytest.approx(risk, abs=1e-6)


def test_risk_is_smoothed_and_the_next_position_follows_it() -> None:
    state = started((1, 0, 0, 0), threshold=0.5, bin_size=3, alpha_intersection=0.3)
    seen = []
    for matched in (True, False, False, True, True):
        observe(state, P, Q, matched)
        seen.append((state.risk, state.scheme, state.alpha))
    assert seen == [
        (0.0, Scheme.INTERSECTION, 0.3),
        (0.5, Scheme.INTERSECTION, 0.3),  # at the threshold is not above it
        (0.75, Scheme.UNION, 0.8),
        (0.375, Scheme.INTERSECTION, 0.3),
        (0.1875, Scheme.INTERSECTION, 0.3),
    ]


def test_the_first_position_is_in_intersection_and_a_refusal_switches_the_second() -> None:
    constants = {"sample_space_size": 1, "alpha_union": 2.0}
    request = request_of(RULE, constants, refusals=[2], max_new_tokens=3)
    steps = decode_one(says([1], 1), says([2], 1), request)
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
    target, draft = (RandomModel(seed, 20, 0.6) for seed in (1, 2))
    common = {"bin_size": 1, "initial_scheme": scheme}
    # A risk threshold of -1 is always passed and one of 9 never.
    held = {"threshold": 0.0, "union_bins": 60}
    risky = {"divergence_weight": 0.0, "risk_threshold": -1.0 if union else 9.0}
    options = {"max_new_tokens": 60, "temperature": temperature, "seed": 4}

    def run(request: Request) -> list[tuple[int, Scheme | None]]:
        return [(step.token, step.scheme) for step in decode_one(target, draft, request)]

    by_risk = run(request_of(RULE, {**common, **risky}, refusals=[1], **options))  # type: ignore[arg-type]
    by_ratio = run(request_of(None, {**common, **held}, **options))  # type: ignore[arg-type]
    assert by_risk == by_ratio
    assert {used for _, used in by_ratio} == {scheme}


@pytest.mark.parametrize("draft_tokens", [2, 7])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_block_length_changes_no_token(draft_tokens: int, temperature: float) -> None:
    target, draft = (RandomModel(seed, 40, 0.7) for seed in (3, 4))

    def run(count: int) -> list[tuple[int, Scheme | None]]:
        request = request_of(
            RULE,
            {"draft_tokens": count},
            refusals=[1, 2, 3],
            max_new_tokens=60,
            temperature=temperature,
            seed=5,
        )
        return [(step.token, step.scheme) for step in decode_one(target, draft, request)]

    assert run(draft_tokens) == run(1)
    assert len({scheme for _, scheme in run(1)}) == 2


def test_refusals_without_a_first_token_are_an_error() -> None:
    with pytest.raises(SafeDraftError, match="at least one token that begins a refusal"):
        start(request_of(RULE))
    start(request_of(RULE, {"refusal_weight": 0.0}))


@pytest.mark.parametrize("name", ["mismatch_weight", "entropy_weight", "risk_threshold"])
def test_weights_that_are_no_numbers_are_refused(name: str) -> None:
    with pytest.raises(SafeDraftError, match=name):
        RiskConfig(**{name: math.nan})


def test_refusals_begin_with_the_tokenizers_own_tokens(tmp_path: Path) -> None:
    pair = talking(tmp_path, lambda prompt: "")
    assert pair.draft.tokenizer is not None
    assert {pair.draft.tokenizer.decode([id]) for id in pair.refusal_tokens} == {*"ISAU"}


def test_a_reply_ends_with_its_end_token() -> None:
    request = request_of(RULE, {"sample_space_size": 1}, end=[3], refusals=[9], max_new_tokens=9)
    assert tokens_of(decode_one(says([1, 2, 3], 1), says([1, 2, 3], 1), request)) == [1, 2, 3]
