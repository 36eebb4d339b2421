"""Cuts, draws, and the theorem: what accept-or-correct gives is distributed exactly as F."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers.laws import rows_of, surprise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safedraft.core.composite import NO_TOKEN, Setting, composite
from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.core.reference import composite_distribution
from safedraft.core.sampling import accept, correct, distribution, draw, log_probabilities

OUT = -torch.inf


def spread(tokens: Tensor, values: Tensor, size: int) -> Tensor:
    """Numbers of a sample space over the vocabulary."""
    kept = tokens < NO_TOKEN
    return torch.zeros(size).index_put((tokens[kept],), values[kept])


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(2, 300),
    alpha=st.floats(0, 3),
    top_k=st.integers(0, 20),
    top_p=st.floats(0.05, 1),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
    scheme=st.sampled_from(Scheme),
)
def test_distribution_agrees_with_the_reference(
    seed: int, size: int, alpha: float, top_k: int, top_p: float, min_p: float, scheme: Scheme
) -> None:
    target, draft = torch.randn(2, size, generator=torch.Generator().manual_seed(seed))
    config = SSDConfig()
    sampling = SamplingParams(temperature=1, top_k=top_k, top_p=top_p, min_p=min_p)
    setting = Setting(scheme is Scheme.UNION, alpha, config.sample_space_size)
    scores = composite(rows_of([target], [draft], whole=True), [setting])
    if scores.whole[0] is not None:
        f = distribution(scores.whole[0].values[None], [sampling])[0]
    else:
        f = spread(scores.tokens[0], distribution(scores.values, [sampling])[0], size)
    p, q = target.softmax(-1).tolist(), draft.softmax(-1).tolist()
    expected = composite_distribution(p, q, scheme, alpha, config, sampling)
    assert f.sum().item() == pytest.approx(1, abs=1e-5)
    # Where a cut falls on the very edge of a token's share, rounding may decide it either way.
    if (f.count_nonzero().item()) == sum(weight > 0 for weight in expected):
        assert f.tolist() == pytest.approx(expected, abs=1e-5)
    else:
        assert abs(f.count_nonzero().item() - sum(weight > 0 for weight in expected)) == 1


CUTS = [
    ([0.4, 0.1, OUT], {}, [0.8, 0.2, 0]),
    ([0.4, -0.1, OUT], {}, [1, 0, 0]),
    ([-0.4, -0.1, OUT], {}, [0, 1, 0]),  # α > 1 can leave nothing positive: the best stays
    ([-0.4, -0.1, -0.1], {}, [0, 1, 0]),  # of equals, the first
    ([0.4, 0.3, 0.1], {"top_k": 2}, [4 / 7, 3 / 7, 0]),
    ([0.1, 0.3, 0.3], {"top_k": 1}, [0, 1, 0]),
    ([0.5, 0.3, 0.2], {"top_p": 0.5}, [1, 0, 0]),
    ([0.5, 0.3, 0.2], {"top_p": 0.51}, [0.625, 0.375, 0]),
    ([0.5, 0.3, 0.2], {"top_p": 0.9, "top_k": 2}, [0.625, 0.375, 0]),
    ([0.5, 0.25, 0.2], {"min_p": 0.5}, [2 / 3, 1 / 3, 0]),
    ([0.2, 0.25, 0.5], {"min_p": 0.51}, [0, 0, 1]),
    ([0.4, 0.4, 0.2], {"min_p": 1.0}, [0.5, 0.5, 0]),
    # As in Transformers, min-p comes last: before top-p, it would leave the first token alone.
    ([0.5, 0.3, 0.2], {"top_p": 0.6, "min_p": 0.5}, [0.625, 0.375, 0]),
    ([-0.4, -0.1, OUT], {"min_p": 0.9}, [0, 1, 0]),
]


@pytest.mark.parametrize(("scores", "cuts", "expected"), CUTS)
def test_cuts(scores: list[float], cuts: dict[str, float], expected: list[float]) -> None:
    f = distribution(torch.tensor([scores]), [SamplingParams(temperature=1, **cuts)])
    assert f[0].tolist() == pytest.approx(expected)


def test_rows_are_cut_each_by_its_own_parameters() -> None:
    values = torch.tensor([scores for scores, _, _ in CUTS])
    f = distribution(values, [SamplingParams(temperature=1, **cuts) for _, cuts, _ in CUTS])
    torch.testing.assert_close(f, torch.tensor([expected for _, _, expected in CUTS]).float())


@pytest.mark.parametrize(
    ("scores", "token", "sampling", "chosen", "most_likely"),
    [
        ([0.4, 0.1, OUT], 1, {"temperature": 1}, 0.2, [(0, 0.8), (1, 0.2)]),
        ([0.1, 0.3, 0.4], 1, {"temperature": 1, "top_k": 2}, 3 / 7, [(2, 4 / 7), (1, 3 / 7)]),
        ([0.3, 0.5, 0.2], 1, {"temperature": 1, "top_p": 0.5}, 1, [(1, 1)]),
        ([0.3, 0.6, 0.1], 0, {"temperature": 1, "min_p": 0.5}, 1 / 3, [(1, 2 / 3), (0, 1 / 3)]),
        ([0.4, -0.1, OUT], 0, {}, 1, [(0, 1)]),
        ([-0.4, -0.1, OUT], 1, {}, 1, [(1, 1)]),  # the greedy token's score may be negative
        ([0.0, -0.1, OUT], 0, {}, 1, [(0, 1)]),
        # A greedy token is cut away by nothing.
        ([0.5, 0.3, 0.2], 0, {"top_k": 1, "top_p": 0.1}, 0.5, [(0, 0.5), (1, 0.3), (2, 0.2)]),
        ([0.25, 0.25, 0.25, 0.25], 0, {"top_k": 1}, 0.25, [(0, 0.25), (1, 0.25), (2, 0.25)]),
    ],
)
def test_log_probabilities(
    scores: list[float],
    token: int,
    sampling: dict[str, float],
    chosen: float,
    most_likely: list[tuple[int, float]],
) -> None:
    ids = torch.arange(len(scores)) * 10
    logs = log_probabilities(ids, torch.tensor(scores), token, SamplingParams(**sampling), 3)
    assert math.exp(logs.chosen) == pytest.approx(chosen)
    assert [id for id, _ in logs.most_likely] == [10 * id for id, _ in most_likely]
    chances = [math.exp(logprob) for _, logprob in logs.most_likely]
    assert chances == pytest.approx([chance for _, chance in most_likely])


def test_draw_never_gives_a_token_without_weight() -> None:
    mass = torch.tensor([0.0, 0.2, 0.0, 0.8, 0.0])
    ends = [0.0, 0.1999999, 0.2, 0.5, 1 - 2**-53]
    assert draw(mass.expand(5, 5), ends).tolist() == [1, 1, 3, 3, 3]


@pytest.mark.parametrize(
    ("place", "draft_chance", "uniform", "accepted"),
    [
        (0, 0.5, 0.49, True),  # F(x) = 0.25: accepted with a probability of one half
        (0, 0.5, 0.5, False),
        (1, 0.5, 1 - 2**-53, True),  # F(x) > q(x): always
        (2, 0.5, 0.0, False),  # F(x) = 0: never
        (-1, 0.5, 0.0, False),  # outside the sample space: never
    ],
)
def test_acceptance(place: int, draft_chance: float, uniform: float, accepted: bool) -> None:
    f = torch.tensor([[0.25, 0.75, 0.0]])
    assert accept(f, [draft_chance], torch.tensor([place]), [uniform]).tolist() == [accepted]


def test_a_correction_is_what_the_draft_has_too_little_of() -> None:
    f, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.9, 0.1, 0.0]])
    uniforms = [0.0, 0.49, 0.51, 0.99]
    corrected = correct(f.expand(4, 3), q.expand(4, 3), uniforms)
    assert corrected.tolist() == [1, 1, 2, 2]
    assert correct(f, f, [0.6]).tolist() == [1]  # nothing is left: drawn from F


Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def accept_or_correct(f: Tensor, q: Tensor, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    chances = q.gather(-1, x[:, None])[:, 0].tolist()
    accepted = accept(f, chances, x, u.tolist())
    return torch.where(accepted, x, correct(f, q, v.tolist()))


def always_accept(f: Tensor, q: Tensor, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return x


def correct_from_f(f: Tensor, q: Tensor, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The mistake that is easily made: draw a rejected position from F, not from what is left."""
    chances = q.gather(-1, x[:, None])[:, 0].tolist()
    return torch.where(accept(f, chances, x, u.tolist()), x, draw(f, v.tolist()))


def frequencies(rule: Rule, union: bool, alpha: float, count: int = 50_000) -> float:
    logits = 2 * torch.randn(2, 24, generator=torch.Generator().manual_seed(3))
    scores = composite(rows_of(logits[:1], logits[1:]), [Setting(union, alpha, 6)])
    own = distribution(scores.values, [SamplingParams(temperature=1)])[0]
    f, q = spread(scores.tokens[0], own, 24), logits[1].softmax(-1)
    numbers = torch.rand(3, count, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    drafted = draw(q.expand(count, -1), numbers[0].tolist())
    tokens = rule(f.expand(count, -1), q.expand(count, -1), drafted, numbers[1], numbers[2])
    return surprise(tokens.bincount(minlength=24).float(), f)


@pytest.mark.parametrize("union", [False, True])
@pytest.mark.parametrize("alpha", [0.3, 0.8, 2.0])
def test_single_positions_are_distributed_as_the_composite(union: bool, alpha: float) -> None:
    assert frequencies(accept_or_correct, union, alpha) < 4


@pytest.mark.parametrize("rule", [always_accept, correct_from_f])
def test_a_broken_rule_is_seen(rule: Rule) -> None:
    with pytest.raises(AssertionError):
        assert frequencies(rule, union=True, alpha=0.8) < 4
