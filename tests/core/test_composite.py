"""The composite against sets and sorting, and the cases the method names."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from helpers.laws import rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safedraft.core.composite import (
    NO_TOKEN,
    OUTSIDE,
    Scores,
    Setting,
    composite,
    probability_of,
    sort_space,
)
from safedraft.core.config import Scheme, SSDConfig
from safedraft.core.reference import composite_scores


def pair_of(seed: int, size: int, shared: float, levels: int = 64) -> tuple[Tensor, Tensor]:
    """Logits of both models, multiples of one part in ``levels``: few of them make ties."""
    common, mine, yours = torch.randn(3, size, generator=torch.Generator().manual_seed(seed))
    target, draft = (
        (3 * (shared * common + (1 - shared) * own) * levels).round() / levels
        for own in (mine, yours)
    )
    return target, draft


def softmax(logits: Tensor) -> list[float]:
    return list(logits.softmax(-1).tolist())


def space(scores: Scores, row: int = 0) -> dict[int, float]:
    """The score of each token of one row's sample space."""
    full = scores.whole[row]
    if full is not None:
        return dict(enumerate(full.values.tolist()))
    pairs = zip(scores.tokens[row].tolist(), scores.values[row].tolist(), strict=True)
    return {token: value for token, value in pairs if token != NO_TOKEN}


def composite_of(target: Tensor, draft: Tensor, setting: Setting, **options: object) -> Scores:
    return composite(rows_of([target], [draft], **options), [setting])  # type: ignore[arg-type]


def assert_as_the_reference(
    scores: Scores, row: int, target: Tensor, draft: Tensor, setting: Setting
) -> None:
    config = SSDConfig(sample_space_size=setting.size, kappa=setting.kappa)
    scheme = Scheme.UNION if setting.union else Scheme.INTERSECTION
    p, q = softmax(target), softmax(draft)
    expected = composite_scores(p, q, scheme, setting.alpha, config)
    values = space(scores, row)
    if scores.open[row] and scores.whole[row] is None:
        # Greedy decoding needs no more than the best tokens of P.
        expected = {token: score for token, score in expected.items() if token in values}
        assert p[max(values, key=lambda token: values[token])] == max(p)
    assert values.keys() == expected.keys()
    assert values == pytest.approx(expected, abs=1e-6)
    tokens = [token for token in scores.tokens[row].tolist() if token != NO_TOKEN]
    assert tokens == sorted(set(tokens))
    assert scores.draft[row, : len(tokens)].tolist() == pytest.approx([q[t] for t in tokens])
    assert bool((scores.values[row, len(tokens) :] == OUTSIDE).all())


SETTING = st.builds(
    Setting,
    union=st.booleans(),
    alpha=st.floats(0, 3),
    size=st.integers(1, 45),
    kappa=st.sampled_from([1, 2, 5, 50]),
)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 300),
    shared=st.floats(0, 1),
    levels=st.sampled_from([1, 2, 64]),
    width=st.sampled_from([3, 40]),
    whole=st.booleans(),
    setting=SETTING,
)
def test_agrees_with_the_reference(
    seed: int, size: int, shared: float, levels: int, width: int, whole: bool, setting: Setting
) -> None:
    target, draft = pair_of(seed, size, shared, levels)
    scores = composite_of(target, draft, setting, width=width, whole=whole)
    assert_as_the_reference(scores, 0, target, draft, setting)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), each=st.lists(SETTING, min_size=2, max_size=12))
def test_rows_of_a_batch_are_decided_alone(seed: int, each: list[Setting]) -> None:
    pairs = [pair_of(seed + row, 120, 0.7, [1, 64][row % 2]) for row in range(len(each))]
    target, draft = (torch.stack(side) for side in zip(*pairs, strict=True))
    together = composite(rows_of(target, draft), each)
    for row, setting in enumerate(each):
        alone = composite_of(target[row], draft[row], setting)
        assert space(together, row) == space(alone)
        assert together.open[row] == alone.open[0]
        assert_as_the_reference(together, row, target[row], draft[row], setting)


def ranked(order: Sequence[int], size: int) -> Tensor:
    """Logits that rank tokens as ``order`` says, the rest by id."""
    order = [*order, *(token for token in range(size) if token not in order)]
    logits = torch.empty(size)
    logits[torch.tensor(order)] = torch.arange(size, 0, -1).float() / 4
    return logits


@pytest.mark.parametrize(
    ("target", "draft", "size", "kappa", "tokens"),
    [
        # The smallest k with two in common is 3, and it brings two at once.
        ([0, 1, 2], [0, 2, 1], 2, 1, {0, 1, 2}),
        # The target's best token is the draft's last: P stands, unless the second best counts.
        ([39, 0, 1], [0, 1], 2, 1, set(range(40))),
        ([39, 0, 1], [0, 1], 2, 2, {0, 1}),
        ([0, 1, 2], [0, 1, 2], 1, 1, {0}),
        ([0, 1], [1, 0], 1, 1, {0, 1}),
    ],
)
def test_intersections(
    target: list[int], draft: list[int], size: int, kappa: int, tokens: set[int]
) -> None:
    p, q = ranked(target, 40), ranked(draft, 40)
    scores = composite_of(p, q, Setting(False, 0.3, size, kappa), whole=True)
    assert space(scores).keys() == tokens
    if len(tokens) == 40:
        assert list(space(scores).values()) == pytest.approx(softmax(p))


def test_a_token_only_the_draft_wants_can_win_in_union_alone() -> None:
    p, q = ranked([0, 1], 40), ranked([30], 40)
    for union, best in ((True, 30), (False, 0)):
        scores = space(composite_of(p, q, Setting(union, 2.0, 1)))
        assert max(scores, key=lambda token: scores[token]) == best


@pytest.mark.parametrize("union", [True, False])
def test_a_sample_space_larger_than_the_vocabulary_is_all_of_it(union: bool) -> None:
    p, q = pair_of(1, 6, 0.5)
    assert len(space(composite_of(p, q, Setting(union, 0.5, 10)))) == 6


@pytest.mark.parametrize(
    ("name", "target", "draft", "setting"),
    [
        # The draft's order is the target's, 60 ranks later: nothing is shared among the best 40.
        ("deep", ranked(range(300), 300), ranked([*range(60, 300)], 300), Setting(False, 0.5, 8)),
        (
            "deep, κ",
            ranked(range(300), 300),
            ranked([*range(60, 300)], 300),
            Setting(False, 0, 3, 99),
        ),
        ("opposite", ranked(range(99), 99), ranked(range(98, -1, -1), 99), Setting(False, 0.5, 4)),
        ("all equal", torch.zeros(200), torch.zeros(200), Setting(False, 0.5, 10)),
        ("all equal, union", torch.zeros(200), torch.zeros(200), Setting(True, 0.5, 10)),
        (
            "ties at the border",
            torch.tensor([*[2.0] * 8, *[1.0] * 92]),
            torch.tensor([*[1.0] * 92, *[2.0] * 8]),
            Setting(False, 0.5, 10),
        ),
        (
            "ties at the border, union",
            torch.tensor([*[1.0] * 92, *[2.0] * 8]),
            torch.tensor([*[2.0] * 8, *[1.0] * 92]),
            Setting(True, 0.5, 10),
        ),
        ("c above K", ranked(range(99), 99), ranked(range(98, -1, -1), 99), Setting(True, 0.5, 60)),
        ("V below K", ranked(range(7), 7), ranked(range(6, -1, -1), 7), Setting(False, 0.5, 4)),
        ("V is K", ranked(range(40), 40), ranked(range(39, -1, -1), 40), Setting(False, 0.5, 40)),
        ("one token", torch.zeros(1), torch.zeros(1), Setting(False, 0.5, 10)),
    ],
)
def test_more_tokens_are_looked_at_where_the_best_do_not_decide(
    name: str, target: Tensor, draft: Tensor, setting: Setting
) -> None:
    scores = composite_of(target, draft, setting)
    assert_as_the_reference(scores, 0, target, draft, setting)
    # Beside rows that need no second look, nothing changes.
    easy = ranked(range(len(target)), len(target))
    rows = rows_of([easy, target, easy], [easy, draft, easy])
    together = composite(rows, [Setting(True, 0.3, 2), setting, Setting(False, 0.3, 1)])
    assert space(together, 1) == space(scores)
    assert set(space(together, 0)) == set(range(min(2, len(target))))
    assert set(space(together, 2)) == {0}


def test_opposite_orders_of_a_large_vocabulary_fit_into_memory() -> None:
    size = 151_936  # pairs of all its tokens would take 20 GB
    target, draft = ranked(range(size), size), ranked(range(size - 1, -1, -1), size)
    scores = composite_of(target, draft, Setting(False, 0.5, 2, size))
    assert set(space(scores)) == {size // 2 - 1, size // 2}


def test_sample_spaces_are_sorted_and_filled_up() -> None:
    tokens = torch.tensor([[5, 2, 5, 9], [1, 1, 0, 7]])
    inside = torch.tensor([[True, True, True, False], [True, True, False, False]])
    assert sort_space(tokens, inside).tolist() == [[2, 5], [1, NO_TOKEN]]


@pytest.mark.parametrize(("token", "chance"), [(0, 0.75), (1, 0.25), (2, 0.0), (3, 0.0)])
def test_the_probability_of_a_token_is_its_share_of_what_is_above_nothing(
    token: int, chance: float
) -> None:
    tokens = torch.tensor([[0, 1, 2, NO_TOKEN]])
    values = torch.tensor([[0.6, 0.2, -0.1, OUTSIDE]])
    scores = Scores(tokens, values, torch.zeros(1, 4), [None], [False])
    assert float(probability_of(scores, torch.tensor([token]))) == pytest.approx(chance)
