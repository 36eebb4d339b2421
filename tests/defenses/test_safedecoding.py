"""SafeDecoding: two positions decided by both models over their intersection, the rest by one."""

from __future__ import annotations

import pytest
import torch
from conftest import RandomModel
from test_sampling import surprise
from torch import Tensor

from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.core.decode import Step
from safedraft.core.sampling import Draws
from safedraft.defenses import safedecoding
from safedraft.defenses.safedecoding import first_step
from safedraft.engines.scripted import ScriptedSession


def expected(p: Tensor, q: Tensor) -> Tensor:
    """The paper's distribution, by sets: c = 5, α = 3, floor 1e-8."""
    by_p, by_q = p.argsort(descending=True).tolist(), q.argsort(descending=True).tolist()
    size = next(k for k in range(1, len(p) + 1) if len({*by_p[:k]} & {*by_q[:k]}) >= min(5, len(p)))
    mass = torch.zeros(len(p))
    for token in {*by_p[:size]} & {*by_q[:size]}:
        mass[token] = max(float(p[token] + 3 * (q[token] - p[token])), 1e-8)
    return mass / mass.sum()


def run(target: RandomModel, draft: RandomModel, **settings: float) -> list[Step]:
    sampling = SamplingParams(**settings)  # type: ignore[arg-type]
    return list(safedecoding(target.session(), draft.session(), [0], [3], SSDConfig(), sampling))


@pytest.mark.parametrize("seed", range(20))
def test_greedy_tokens(seed: int) -> None:
    target, draft = (RandomModel(seed + 100 * n, 30) for n in (1, 2))
    said: list[int] = []
    for position, step in enumerate(run(target, draft, max_new_tokens=12)):
        p, q = target([0, *said]).softmax(-1), draft([3, *said]).softmax(-1)
        both = position < 2
        assert step.token == int((expected(p, q) if both else p).argmax())
        assert step.scheme is (Scheme.INTERSECTION if both else None)
        assert step.strength == (3.0 if both else 0.0)
        assert (step.draft_probability is None) is not both
        said.append(step.token)


def test_the_targets_best_token_has_no_claim() -> None:
    # Top_5 of each share nothing but tokens that the target finds unlikely; SSD would keep 0.
    p, q = torch.zeros(40), torch.zeros(40)
    p[:15] = torch.linspace(9, 7, 15)
    q[10:25] = torch.linspace(9, 7, 15)
    target, draft = ScriptedSession(lambda ids: p), ScriptedSession(lambda ids: q)
    (step,) = safedecoding(target, draft, [1], [1], SSDConfig(), SamplingParams(max_new_tokens=1))
    assert step.token == 10
    assert step.matched


def test_the_draft_is_asked_twice() -> None:
    target, draft = (RandomModel(seed, 12).session() for seed in (1, 2))
    sampling = SamplingParams(max_new_tokens=9)
    steps = list(safedecoding(target, draft, [1, 2], [3, 4, 5], SSDConfig(), sampling))
    assert draft.calls == [("forward", 3), ("forward", 1)]
    assert target.calls == [("forward", 2), *[("forward", 1)] * 8]
    assert [step.block for step in steps] == list(range(9))


@pytest.mark.parametrize("position", [0, 1])
def test_a_sampled_position_is_distributed_as_the_paper_says(position: int) -> None:
    p, q = (RandomModel(seed, 16, shared=0.6)([0]).div(3).softmax(-1) for seed in (1, 2))
    counts = torch.zeros(16)
    for seed in range(4000):
        step = first_step(p, q, SamplingParams(temperature=1), Draws(seed), position)
        counts[step.token] += 1
    f = expected(p, q)
    # What stands at the floor is too rare to be counted on.
    likely = f > 1e-6
    assert 2 < likely.sum() < f.count_nonzero()
    assert counts[~likely].sum() == 0
    assert surprise(counts[likely], f[likely]) < 4
    assert surprise(counts[likely], q[likely] / q[likely].sum()) > 4  # it would see another one


def test_scores_below_the_floor_are_even() -> None:
    # The draft likes the common tokens, 0 to 4, far less than the target: all scores are negative.
    p = torch.tensor([0.21, 0.2, 0.2, 0.19, 0.19, 0.01, 0.0])
    q = torch.tensor([0.02, 0.02, 0.02, 0.02, 0.02, 0.0, 0.9])
    counts = torch.zeros(7)
    for seed in range(2000):
        step = first_step(p, q, SamplingParams(temperature=1), Draws(seed), 0)
        counts[step.token] += 1
    assert surprise(counts, torch.tensor([0.2] * 5 + [0.0] * 2)) < 4


def test_an_end_token_among_the_first_ends_the_reply() -> None:
    target, draft = (RandomModel(seed, 12) for seed in (1, 2))
    end = run(target, draft, max_new_tokens=3)[1].token
    steps = safedecoding(
        target.session(), draft.session(), [0], [3], SSDConfig(), SamplingParams(), {end}
    )
    assert len(list(steps)) <= 2
