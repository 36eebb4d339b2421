"""Tokens that cannot come are no part of the vocabulary: F is that of models that lack them."""

from __future__ import annotations

import pytest
import torch
from helpers.laws import place_of, rows_of
from torch import Tensor

from safedraft.core.composite import NO_TOKEN, Setting, composite
from safedraft.core.rows import Rows

V = 300


def models(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of both models, ``[3, V]``, and the ids of ``count`` tokens that can come."""
    generator = torch.Generator().manual_seed(count)
    target = 2 * torch.randn(3, V, generator=generator)
    draft = target + torch.randn(3, V, generator=generator)
    return target, draft, torch.randperm(V, generator=generator)[:count].sort().values


def restrict(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.full_like(logits, -torch.inf).index_copy(1, ids, logits[:, ids])


def both(count: int, *, whole: bool = False) -> tuple[Rows, Rows, Tensor]:
    """The positions with what cannot come at -∞, and with what can come alone."""
    target, draft, ids = models(count)
    masked = rows_of(restrict(target, ids), restrict(draft, ids), temperature=0.7, whole=whole)
    return masked, rows_of(target[:, ids], draft[:, ids], temperature=0.7, whole=whole), ids


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 39, 40, 41, 80, 299, 300])
@pytest.mark.parametrize("kappa", [1, 5])
@pytest.mark.parametrize("union", [False, True])
def test_the_composite_is_that_of_what_can_come(count: int, kappa: int, union: bool) -> None:
    masked, alone, ids = both(count)
    settings = [Setting(union, alpha, 10, kappa) for alpha in (0.3, 1.0, 2.5)]
    scores, expected = composite(masked, settings), composite(alone, settings)
    filled = expected.tokens < NO_TOKEN
    assert scores.open == expected.open
    for row in range(3):
        space = scores.tokens[row, : int(filled[row].sum())]
        assert space.equal(ids[expected.tokens[row][filled[row]]])
        torch.testing.assert_close(
            scores.values[row, : len(space)], expected.values[row][filled[row]]
        )


@pytest.mark.parametrize("count", [1, 10, 300])
def test_entropies_and_distributions_are_those_of_what_can_come(count: int) -> None:
    masked, alone, ids = both(count)
    for row in range(3):
        assert masked.entropies(row) == pytest.approx(alone.entropies(row), abs=1e-5)
        for found, expected in zip(
            masked.distributions(row), alone.distributions(row), strict=True
        ):
            torch.testing.assert_close(found[ids], expected)
            assert float(found.sum()) == pytest.approx(1, abs=1e-5)


def test_what_is_possible_is_known_as_far_as_the_best_tell() -> None:
    for count, known, possible in ((1, 1, 1), (39, 39, 39), (40, 39, V), (300, 39, V)):
        target, _, ids = models(count)
        ranked = place_of(restrict(target, ids)[0]).ranked
        assert (int(ranked.known[0]), int(ranked.possible[0])) == (known, possible)
