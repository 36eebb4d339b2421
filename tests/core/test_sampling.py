"""Cuts, draws, and the theorem: what accept-or-correct gives is distributed exactly as F."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from conftest import RandomModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safedraft.core import decode as loop
from safedraft.core.composite import composite
from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.core.reference import composite_distribution
from safedraft.core.sampling import (
    Draws,
    accept_or_correct,
    distribution,
    draw,
    log_probabilities,
    probabilities,
)

OUT = -torch.inf


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(2, 300),
    alpha=st.floats(0, 3),
    top_k=st.integers(0, 20),
    top_p=st.floats(0.05, 1),
    scheme=st.sampled_from(Scheme),
)
def test_distribution_agrees_with_the_reference(
    seed: int, size: int, alpha: float, top_k: int, top_p: float, scheme: Scheme
) -> None:
    p, q = torch.randn(2, size, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    config, sampling = SSDConfig(), SamplingParams(temperature=1, top_k=top_k, top_p=top_p)
    f = distribution(composite(p, q, scheme is Scheme.UNION, alpha, config), sampling)
    expected = composite_distribution(p.tolist(), q.tolist(), scheme, alpha, config, sampling)
    assert f.sum().item() == pytest.approx(1, abs=1e-5)
    # Where a cut falls on the very edge of a token's share, rounding may decide it either way.
    if (f.count_nonzero().item()) == sum(weight > 0 for weight in expected):
        assert f.tolist() == pytest.approx(expected, abs=1e-5)
    else:
        assert abs(f.count_nonzero().item() - sum(weight > 0 for weight in expected)) == 1


@pytest.mark.parametrize(
    ("scores", "sampling", "expected"),
    [
        ([0.4, 0.1, OUT], {}, [0.8, 0.2, 0]),
        ([0.4, -0.1, OUT], {}, [1, 0, 0]),
        ([-0.4, -0.1, OUT], {}, [0, 1, 0]),  # α > 1 can leave nothing positive: the best stays
        ([0.4, 0.3, 0.1], {"top_k": 2}, [4 / 7, 3 / 7, 0]),
        ([0.5, 0.3, 0.2], {"top_p": 0.5}, [1, 0, 0]),
        ([0.5, 0.3, 0.2], {"top_p": 0.51}, [0.625, 0.375, 0]),
        ([0.5, 0.3, 0.2], {"top_p": 0.9, "top_k": 2}, [0.625, 0.375, 0]),
    ],
)
def test_cuts(scores: list[float], sampling: dict[str, float], expected: list[float]) -> None:
    f = distribution(torch.tensor(scores), SamplingParams(temperature=1, **sampling))
    assert f.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scores", "token", "sampling", "chosen", "most_likely"),
    [
        ([0.4, 0.1, OUT], 1, {"temperature": 1}, 0.2, [(0, 0.8), (1, 0.2)]),
        ([0.1, 0.3, 0.4], 1, {"temperature": 1, "top_k": 2}, 3 / 7, [(2, 4 / 7), (1, 3 / 7)]),
        ([0.3, 0.5, 0.2], 1, {"temperature": 1, "top_p": 0.5}, 1, [(1, 1)]),
        ([0.4, -0.1, OUT], 0, {}, 1, [(0, 1)]),
        ([-0.4, -0.1, OUT], 1, {}, 1, [(1, 1)]),  # the greedy token's score may be negative
        ([0.0, -0.1, OUT], 0, {}, 1, [(0, 1)]),
        ([0.5, 0.3, 0.2], 0, {"top_k": 1, "top_p": 0.1}, 0.5, [(0, 0.5), (1, 0.3), (2, 0.2)]),
        # Of equals, top-k keeps whichever it likes: the greedy one must not be cut away.
        ([0.25, 0.25, 0.25, 0.25], 0, {"top_k": 1}, 0.25, None),
    ],
)
def test_log_probabilities(
    scores: list[float],
    token: int,
    sampling: dict[str, float],
    chosen: float,
    most_likely: list[tuple[int, float]] | None,
) -> None:
    found = log_probabilities(torch.tensor(scores), token, SamplingParams(**sampling), 10)
    assert math.exp(found.chosen) == pytest.approx(chosen)
    if most_likely is not None:
        assert [id for id, _ in found.most_likely] == [id for id, _ in most_likely]
        chances = [math.exp(logprob) for _, logprob in found.most_likely]
        assert chances == pytest.approx([chance for _, chance in most_likely])


def test_temperature_divides_the_logits_and_zero_leaves_them() -> None:
    logits = torch.tensor([1.0, 2.0, 4.0], dtype=torch.bfloat16)
    assert probabilities(logits, 2.0).tolist() == pytest.approx((logits / 2).float().softmax(-1))
    assert probabilities(logits).dtype == torch.float32
    assert probabilities(logits).tolist() == pytest.approx(logits.float().softmax(-1))


@pytest.mark.parametrize("temperature", [0.2, 0.05, 0.01])
def test_a_low_temperature_keeps_the_order_and_with_it_the_sample_space(temperature: float) -> None:
    """Where each model is sure of its word, and the other's is its second."""
    logits = torch.randn(2, 500, generator=torch.Generator().manual_seed(1))
    logits[0, 7], logits[0, 8], logits[1, 8], logits[1, 7] = 40.0, 28.0, 40.0, 28.0
    p, q = probabilities(logits, temperature)
    assert (
        p.argsort(descending=True)[:50].tolist() == logits[0].argsort(descending=True)[:50].tolist()
    )
    f = distribution(composite(p, q, False, 0.6, SSDConfig()), SamplingParams(temperature=1))
    assert f[8].item() == pytest.approx(0.6)
    assert f[7].item() == pytest.approx(0.4)


def test_draws_depend_on_seed_and_position_alone() -> None:
    forwards, backwards = Draws(7), Draws(7)
    ahead = backwards[20]
    assert [forwards[i] for i in range(21)] == [backwards[i] for i in range(21)]
    assert forwards[20] == ahead
    assert Draws(8)[0] != Draws(7)[0]


def test_draw_never_gives_a_token_without_weight() -> None:
    mass = torch.tensor([0.0, 0.2, 0.0, 0.8, 0.0])
    ends = torch.tensor([0.0, 0.1999999, 0.2, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(mass.expand(5, 5), ends).tolist() == [1, 1, 3, 3, 3]


def surprise(counts: Tensor, expected: Tensor) -> float:
    """How many standard deviations the counts' χ² lies above its mean (Wilson and Hilferty)."""
    kept = expected > 0
    assert counts[~kept].sum() == 0
    wanted = expected[kept].double() * counts.sum()
    freedom = int(kept.sum()) - 1
    chi_square = float(((counts[kept] - wanted) ** 2 / wanted).sum())
    spread = 2 / (9 * freedom)
    return float(((chi_square / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5)


Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def always_accept(f: Tensor, q: Tensor, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return x, torch.ones_like(x, dtype=torch.bool)


def correct_from_f(f: Tensor, q: Tensor, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The mistake that is easily made: draw a rejected position from F, not from what is left."""
    accepted = accept_or_correct(f, q, x, u, v)[1]
    return torch.where(accepted, x, draw(f, v)), accepted


def frequencies(rule: Rule, union: bool, alpha: float, count: int = 100_000) -> float:
    p, q = (2 * torch.randn(2, 24, generator=torch.Generator().manual_seed(3))).softmax(-1)
    config = SSDConfig(sample_space_size=6)
    f = distribution(composite(p, q, union, alpha, config), SamplingParams(temperature=1))
    uniform = torch.rand(3, count, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    drafted = draw(q.expand(count, -1), uniform[0])
    tokens, _ = rule(f.expand(count, -1), q.expand(count, -1), drafted, uniform[1], uniform[2])
    return surprise(tokens.bincount(minlength=24).float(), f)


@pytest.mark.parametrize("union", [False, True])
@pytest.mark.parametrize("alpha", [0.3, 0.8, 2.0])
def test_single_positions_are_distributed_as_the_composite(union: bool, alpha: float) -> None:
    assert frequencies(accept_or_correct, union, alpha) < 4


@pytest.mark.parametrize("rule", [always_accept, correct_from_f])
def test_a_broken_rule_is_seen(rule: Rule) -> None:
    with pytest.raises(AssertionError):
        assert frequencies(rule, union=True, alpha=0.8) < 4


SAMPLED = SamplingParams(temperature=0.9, max_new_tokens=2)


def enumerated(config: SSDConfig, target: RandomModel, draft: RandomModel) -> dict[object, float]:
    """Chance of every two-token reply, from the reference: the scheme of the second position
    follows from whether the first one matched."""

    def both(ids: list[int], scheme: str) -> tuple[list[float], list[float]]:
        alpha = config.alpha_union if scheme == "union" else config.alpha_intersection
        p, q = ((m(ids) / SAMPLED.temperature).softmax(-1).tolist() for m in (target, draft))
        return q, composite_distribution(p, q, scheme, alpha, config, SAMPLED)

    chances: Counter[object] = Counter()
    q, f = both([0], "intersection")
    for first in range(target.vocabulary):
        matched = min(q[first], f[first])
        # With bins of one position, a match stays in intersection and a miss goes to union.
        for chance, scheme in ((matched, "intersection"), (f[first] - matched, "union")):
            _, g = both([0, first], scheme)
            for second in range(target.vocabulary):
                chances[first, second] += chance * g[second]
    return chances


def test_two_token_replies_are_distributed_as_enumerated() -> None:
    target, draft = (RandomModel(seed, 5, shared=0.4) for seed in (1, 2))
    config = SSDConfig(bin_size=1, sample_space_size=2, alpha_min=0, alpha_decay=0)
    counts: Counter[object] = Counter()
    for seed in range(4000):
        sampling = SAMPLED.model_copy(update={"seed": seed})
        sessions = target.session(), draft.session()
        steps = loop.decode(*sessions, [0], [0], config, sampling)
        counts[tuple(step.token for step in steps)] += 1
    chances = enumerated(config, target, draft)
    assert sum(chances.values()) == pytest.approx(1)
    replies = sorted(chances)
    observed = torch.tensor([float(counts[reply]) for reply in replies])
    assert surprise(observed, torch.tensor([chances[reply] for reply in replies])) < 4
