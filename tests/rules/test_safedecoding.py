"""SafeDecoding: two positions decided by both models over their intersection, the rest by one."""

from __future__ import annotations

import pytest
import torch
from helpers.decoding import computed, decode_one, request_of
from helpers.laws import TOLERANCE, law_of, marginal
from helpers.models import RandomModel, constant, logits_of
from torch import Tensor

from safedraft.core.config import Scheme
from safedraft.core.decode import decode
from safedraft.core.generation import Step
from safedraft.engines.scripted import ScriptedEngine
from safedraft.rules.safedecoding import SafeDecoding


def expected(p: Tensor, q: Tensor) -> Tensor:
    """The paper's distribution, by sets: c = 5, α = 3, floor 1e-8."""
    by_p, by_q = (x.argsort(descending=True, stable=True).tolist() for x in (p, q))
    size = next(k for k in range(1, len(p) + 1) if len({*by_p[:k]} & {*by_q[:k]}) >= min(5, len(p)))
    mass = torch.zeros(len(p))
    for token in {*by_p[:size]} & {*by_q[:size]}:
        mass[token] = max(float(p[token] + 3 * (q[token] - p[token])), 1e-8)
    return mass / mass.sum()


def run(
    target: RandomModel, draft: RandomModel, end: tuple[int, ...] = (), **sampling: float
) -> list[Step]:
    return decode_one(target, draft, request_of(SafeDecoding(), None, ([0], [3]), end, **sampling))


@pytest.mark.parametrize("size", [3, 30, 200])
@pytest.mark.parametrize("seed", range(6))
def test_greedy_tokens(seed: int, size: int) -> None:
    target, draft = (RandomModel(seed + 100 * n, size, levels=64) for n in (1, 2))
    ids: list[int] = []
    for position, step in enumerate(run(target, draft, max_new_tokens=12)):
        p, q = target([0, *ids]).softmax(-1), draft([3, *ids]).softmax(-1)
        both = position < 2
        assert step.token == int((expected(p, q) if both else p).argmax())
        assert step.scheme is (Scheme.INTERSECTION if both else None)
        assert step.alpha == (3.0 if both else 0.0)
        assert (step.draft_probability is None) is not both
        ids.append(step.token)


def test_the_targets_best_token_has_no_claim() -> None:
    # Top_5 of each share nothing but tokens that the target finds unlikely; SSD would keep 0.
    p, q = torch.zeros(40), torch.zeros(40)
    p[:15] = torch.linspace(9, 7, 15)
    q[10:25] = torch.linspace(9, 7, 15)
    request = request_of(SafeDecoding(), max_new_tokens=1)
    (step,) = decode_one(constant(p), constant(q), request)
    assert step.token == 10
    assert step.matched


def test_the_draft_is_asked_twice() -> None:
    engine = ScriptedEngine(*(RandomModel(seed, 12) for seed in (1, 2)))
    request = request_of(SafeDecoding(), None, ([1, 2], [3, 4, 5]), max_new_tokens=9)
    steps = [step for _, step in decode(engine, [request])]
    target, draft = engine.sessions
    assert computed(draft) == [3, 1]
    assert computed(target) == [2, *[1] * 8]
    assert [step.block for step in steps] == list(range(9))


@pytest.mark.usefixtures("lattice")
def test_a_sampled_position_is_distributed_as_the_paper_says() -> None:
    target, draft = (RandomModel(seed, 16, shared=0.6)([0]) / 3 for seed in (1, 2))
    request = request_of(SafeDecoding(), temperature=1)
    law = law_of(request, target, draft)
    p, q = target.softmax(-1), draft.softmax(-1)
    assert marginal(law, 16) == pytest.approx(expected(p, q).tolist(), abs=TOLERANCE)
    assert marginal(law, 16) != pytest.approx(q.tolist(), abs=TOLERANCE)


@pytest.mark.usefixtures("lattice")
def test_scores_below_the_floor_are_even() -> None:
    # The draft likes the common tokens, 0 to 4, far less than the target: all scores are negative.
    p = logits_of([0.21, 0.2, 0.2, 0.19, 0.19, 0.01, 0.0])
    q = logits_of([0.02, 0.02, 0.02, 0.02, 0.02, 0.0, 0.9])
    request = request_of(SafeDecoding(), temperature=1)
    law = law_of(request, p, q)
    assert marginal(law, 7) == pytest.approx([0.2] * 5 + [0.0] * 2, abs=TOLERANCE)


def test_the_rest_of_a_sampled_reply_is_the_targets() -> None:
    target, draft = (RandomModel(seed, 12) for seed in (1, 2))
    steps = run(target, draft, max_new_tokens=20, temperature=1.0, top_k=1, seed=4)
    ids = [0, *(step.token for step in steps)]
    for position in range(2, 20):
        assert ids[position + 1] == int(target(ids[: position + 1]).argmax())


def test_an_end_token_among_the_first_ends_the_reply() -> None:
    target, draft = (RandomModel(seed, 12) for seed in (1, 2))
    free = run(target, draft, max_new_tokens=9)
    ended = run(target, draft, (free[1].token,), max_new_tokens=9)
    assert ended == free[: len(ended)]
    assert len(ended) <= 2 < len(free)
