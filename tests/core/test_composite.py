"""The composite against sets and sorting, and the cases the method names."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safedraft.core.composite import composite
from safedraft.core.config import Scheme, SSDConfig
from safedraft.core.reference import composite_scores


def pair_of(seed: int, size: int, shared: float) -> tuple[Tensor, Tensor]:
    common, mine, yours = torch.randn(3, size, generator=torch.Generator().manual_seed(seed))
    blend = [3 * (shared * common + (1 - shared) * own) for own in (mine, yours)]
    return blend[0].softmax(-1), blend[1].softmax(-1)


def as_dict(scores: Tensor) -> dict[int, float]:
    return {i: s for i, s in enumerate(scores.tolist()) if s != -torch.inf}


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 300),
    shared=st.floats(0, 1),
    c=st.integers(1, 40),
    kappa=st.integers(1, 5),
    alpha=st.floats(0, 3),
    scheme=st.sampled_from(Scheme),
)
def test_agrees_with_the_reference(
    seed: int, size: int, shared: float, c: int, kappa: int, alpha: float, scheme: Scheme
) -> None:
    p, q = pair_of(seed, size, shared)
    config = SSDConfig(sample_space_size=c, kappa=kappa)
    scores = as_dict(composite(p, q, scheme is Scheme.UNION, alpha, config))
    expected = composite_scores(p.tolist(), q.tolist(), scheme, alpha, config)
    assert scores.keys() == expected.keys()
    assert scores == pytest.approx(expected, abs=1e-6)


def test_rows_of_a_batch_are_decided_alone() -> None:
    pairs = [pair_of(seed, 120, shared=0.6) for seed in range(24)]
    p, q = (torch.stack(rows).view(4, 6, 120) for rows in zip(*pairs, strict=True))
    union = torch.arange(24).view(4, 6) % 3 == 0
    strength = torch.linspace(0, 2, 24).view(4, 6)
    config = SSDConfig()
    batch = composite(p, q, union, strength, config)
    for i, j in torch.cartesian_prod(torch.arange(4), torch.arange(6)).tolist():
        alone = composite(p[i, j], q[i, j], bool(union[i, j]), float(strength[i, j]), config)
        torch.testing.assert_close(batch[i, j], alone, rtol=0, atol=0)


def ranked(order: list[int], size: int) -> Tensor:
    """A distribution whose tokens are ranked as ``order`` says, the rest by id."""
    order = order + [token for token in range(size) if token not in order]
    logits = torch.empty(size)
    logits[torch.tensor(order)] = torch.arange(size, 0, -1).float() / 4
    return logits.softmax(-1)


def test_intersection_may_hold_one_token_more_than_c() -> None:
    # The smallest k with two in common is 3, and it brings two at once.
    p, q = ranked([0, 1, 2], 40), ranked([0, 2, 1], 40)
    config = SSDConfig(sample_space_size=2)
    assert as_dict(composite(p, q, False, 0.3, config)).keys() == {0, 1, 2}


def test_disagreement_leaves_the_target_its_own_distribution() -> None:
    # The target's best token is the draft's last.
    p, q = ranked([39, 0, 1], 40), ranked([0, 1], 40)
    config = SSDConfig(sample_space_size=2)
    torch.testing.assert_close(composite(p, q, False, 0.3, config), p)
    # With κ = 2, its second best is common, and the intersection stands.
    kept = composite(p, q, False, 0.3, config.model_copy(update={"kappa": 2}))
    assert as_dict(kept).keys() == {0, 1}


def test_a_token_only_the_draft_wants_can_win_in_union_alone() -> None:
    p, q = ranked([0, 1], 40), ranked([30], 40)
    config = SSDConfig(sample_space_size=1)
    assert int(composite(p, q, True, 2.0, config).argmax()) == 30
    assert int(composite(p, q, False, 2.0, config).argmax()) == 0


def test_a_sample_space_larger_than_the_vocabulary_is_all_of_it() -> None:
    p, q = pair_of(1, 6, 0.5)
    for union in (True, False):
        assert len(as_dict(composite(p, q, union, 0.5, SSDConfig()))) == 6
