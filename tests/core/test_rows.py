"""The best tokens of each model against sorting, ties and the border of the K best included."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.laws import place_of, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safedraft.core.errors import BrokenModelError
from safedraft.core.rows import WIDTH, rank, require_finite


def logits_of(seed: int, rows: int, vocabulary: int, levels: int) -> Tensor:
    """Random logits; few ``levels`` make many ties."""
    values = 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))
    return (values * levels).round() / levels


def in_order(logits: Tensor) -> list[int]:
    """All tokens by (logit, id)."""
    values = logits.tolist()
    return sorted(range(len(values)), key=lambda token: (-values[token], token))


# From 4 K chunks of 64 tokens on, the best ones are searched by chunks.
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocabulary=st.sampled_from([1, 2, 7, 39, 40, 41, 200, 1030, 1280, 1300, 2000]),
    width=st.sampled_from([1, 5, 40]),
    levels=st.sampled_from([1, 2, 64]),
)
def test_ranks_are_those_of_sorting(seed: int, vocabulary: int, width: int, levels: int) -> None:
    logits = logits_of(seed, 3, vocabulary, levels)
    ranked = rank(logits, [0.0, 0.5, 1.0], width)
    width = min(width, vocabulary)
    for row in range(3):
        best, known = ranked.tokens[row].tolist(), int(ranked.known[row])
        expected = in_order(logits[row])
        assert best[:known] == expected[:known]
        # The others tie with the last of the K best: some of those that do.
        rest, border = logits[row, best[known:]], logits[row, expected[width - 1]]
        assert len(set(best)) == width
        assert bool((rest == border).all())
        assert known == (width if width == vocabulary else int((logits[row, best] > border).sum()))
        assert best == sorted(best, key=lambda token: (-float(logits[row, token]), token))


def test_a_row_is_ranked_the_same_whatever_stands_beside_it() -> None:
    logits = logits_of(1, 6, 300, levels=2)
    together = rank(logits, [0.0, 0.7] * 3)
    for row in range(6):
        alone = rank(logits[row : row + 1], [[0.0, 0.7][row % 2]])
        for field, one in zip(together.detach(row), alone, strict=True):
            torch.testing.assert_close(field, one, rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_temperature_divides_the_logits_and_zero_leaves_them(temperature: float) -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.bfloat16)
    place = place_of(logits[0], temperature)
    expected = (logits[0].float() / (temperature or 1)).softmax(-1)
    assert place.distribution().dtype == torch.float32
    torch.testing.assert_close(place.distribution(), expected)
    assert [place.chance(token) for token in range(3)] == pytest.approx(expected.tolist())


@pytest.mark.parametrize("temperature", [0.2, 0.05, 0.01])
def test_a_low_temperature_keeps_the_order(temperature: float) -> None:
    logits = logits_of(4, 1, 300, levels=64)
    cold = rank(logits, [temperature])
    assert cold.tokens.tolist() == rank(logits, [0.0]).tokens.tolist()
    assert float(cold.distribution(0).sum()) == pytest.approx(1)


def test_entropies_know_no_temperature() -> None:
    even, certain = torch.zeros(8), torch.tensor([50.0, *[0.0] * 7])
    rows = rows_of([even], [certain], temperature=0.1)
    assert rows.entropies(0) == pytest.approx((math.log(8), 0.0), abs=1e-6)
    rows = rows_of(*[[torch.tensor([0.5, 0.25, 0.25]).log()]] * 2, temperature=0.1)
    assert rows.entropies(0) == pytest.approx((1.5 * math.log(2),) * 2)


@pytest.mark.parametrize(
    ("logits", "best"),
    [
        (torch.zeros(500), 0),  # more tokens tie than are ranked
        (torch.tensor([*[0.0] * 250, *[1.0] * 250]), 250),
        (torch.tensor([0.0, 2.0, 2.0, 1.0]), 1),
        (torch.tensor([1.0]), 0),
    ],
)
def test_the_best_of_several_has_the_lowest_id(logits: Tensor, best: int) -> None:
    assert place_of(logits).best() == best


@pytest.mark.parametrize("levels", [1, 64])
@pytest.mark.parametrize("vocabulary", [120, 2000])  # below and above the square of WIDTH
def test_draft_ranks_are_the_ranks_of_the_targets_tokens(levels: int, vocabulary: int) -> None:
    logits = logits_of(2, 8, vocabulary, levels)
    rows = rows_of(logits[:4], logits[4:])
    for row in range(4):
        order = {token: at for at, token in enumerate(rows.draft_tokens[row].tolist())}
        expected = [order.get(token, vocabulary) for token in rows.target_tokens[row].tolist()]
        assert rows.draft_ranks()[row].tolist() == expected


def test_widening_doubles_the_best_tokens_up_to_all_of_them() -> None:
    logits = logits_of(3, 6, 100, levels=1)
    rows = rows_of(logits[:3], logits[3:], temperature=0.6, whole=True)
    widths, wider = [rows.width], rows
    while wider.width < wider.vocabulary:
        wider = wider.widen()
        widths.append(wider.width)
    assert widths == [WIDTH, 2 * WIDTH, 100]
    assert wider.needs_whole == rows.needs_whole == (True,) * 3
    for row in range(3):
        assert wider.target_tokens[row].tolist() == in_order(logits[row])
        assert wider.draft_tokens[row].tolist() == in_order(logits[3 + row])
        assert int(wider.known[row]) == 100 > int(rows.known[row])
        for before, after in zip(rows.distributions(row), wider.distributions(row), strict=True):
            torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_a_selection_holds_the_rows_that_were_asked_for() -> None:
    logits = logits_of(5, 8, 60, levels=64)
    rows = rows_of(logits[:4], logits[4:])
    some = rows.select([3, 1])
    assert len(some) == 2
    assert some.target_tokens.tolist() == [rows.target_tokens[at].tolist() for at in (3, 1)]
    assert some.draft_tokens.tolist() == [rows.draft_tokens[at].tolist() for at in (3, 1)]


def test_probabilities_of_chosen_tokens_are_those_of_the_softmax() -> None:
    logits = logits_of(6, 4, 90, levels=64)
    rows = rows_of(logits[:2], logits[2:], temperature=0.7)
    tokens = torch.tensor([[0, 89, 5], [3, 3, 40]])
    p, q = rows.probabilities(tokens)
    expected = (logits / 0.7).softmax(-1)
    torch.testing.assert_close(p, expected[:2].gather(-1, tokens))
    torch.testing.assert_close(q, expected[2:].gather(-1, tokens))


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_refused(broken: float) -> None:
    logits = torch.zeros(3, 50)
    require_finite(logits, "the draft")
    logits[1, 7] = broken
    with pytest.raises(BrokenModelError, match="the draft gave NaN or infinite logits"):
        require_finite(logits, "the draft")
