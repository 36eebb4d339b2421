"""Sequoia: siblings in rounds of their own, and that its text is the target's own."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers.decoding import decode_one, decode_together, request_of, tokens_of
from helpers.laws import surprise
from helpers.models import RandomModel
from torch import Tensor

from safedraft.core.config import SamplingParams
from safedraft.core.decode import Batch
from safedraft.core.rule import Rule
from safedraft.core.sampling import accept, choose_by_rounds, distribution, draw, draw_others
from safedraft.engines.scripted import ScriptedEngine
from safedraft.rules.sequoia import Sequoia
from safedraft.rules.speculative import Speculative
from safedraft.rules.ssd import SSD
from safedraft.rules.target_only import TargetOnly

SLOW = pytest.mark.slow
WIDE = {"draft_tokens": 12, "draft_tree": (3, 2, 1, 1, 2)}
SIZE = 5

Rounds = Callable[[Tensor, Tensor, Sequence[int], Sequence[float], float], int]


def second_child_wins(
    f: Tensor, q: Tensor, drawn: Sequence[int], accepts: Sequence[float], last: float
) -> int:
    """A wrong rule: any drafted sibling will do."""
    return drawn[1] if len(drawn) > 1 else choose_by_rounds(f, q, drawn, accepts, last)


def siblings_against_the_whole(
    f: Tensor, q: Tensor, drawn: Sequence[int], accepts: Sequence[float], last: float
) -> int:
    """A wrong rule: each sibling is tried against F, not against what is left of it."""
    for token, number in zip(drawn[1:], accepts, strict=True):
        if number * float(q[token]) < float(f[token]):
            return token
    return choose_by_rounds(f, q, drawn[:1], (), last)


def chi(rounds: Rounds, children: int, count: int, *, of_matches: bool = False) -> float:
    """How far the tokens of one position are from F, by the number of drafted children."""
    f, q = torch.tensor([0.1, 0.5, 0.3, 0.1, 0.0]), torch.tensor([0.6, 0.2, 0.2, 0.0, 0.0])
    chance = random.Random(7)
    tokens, matches = torch.zeros(SIZE), torch.zeros(SIZE)
    for _ in range(count):
        first = int(draw(q[None], [chance.random()])[0])
        others = draw_others(q, first, [chance.random() for _ in range(children - 1)])
        place = torch.tensor([first])
        matched = bool(accept(f[None], [float(q[first])], place, [chance.random()])[0])
        numbers = [chance.random() for _ in others]
        token = first if matched else rounds(f, q, (first, *others), numbers, chance.random())
        tokens[token] += 1
        matches[token] += matched
    if of_matches:
        wanted = torch.minimum(f, q)
        return surprise(matches, wanted / wanted.sum())
    return surprise(tokens, f)


@pytest.mark.parametrize("children", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [800, pytest.param(20_000, marks=SLOW)])
def test_a_token_is_distributed_as_f_and_a_match_as_without_siblings(
    children: int, count: int
) -> None:
    assert chi(choose_by_rounds, children, count) < 4
    assert chi(choose_by_rounds, children, count, of_matches=True) < 4


@pytest.mark.parametrize("rounds", [second_child_wins, siblings_against_the_whole])
def test_wrong_rounds_are_seen(rounds: Rounds) -> None:
    assert chi(rounds, 3, 800) > 4


def test_siblings_are_drawn_without_replacement() -> None:
    q = torch.tensor([0.6, 0.3, 0.1, 0.0, 0.0])
    chance = random.Random(3)
    pairs: Counter[int] = Counter()
    for _ in range(1500):
        others = draw_others(q, 0, [chance.random() for _ in range(4)])
        assert len({0, *others}) == len(others) + 1
        pairs[others[0]] += 1
    rest = q.index_fill(0, torch.tensor([0]), 0.0)
    observed = torch.tensor([float(pairs[token]) for token in range(SIZE)])
    assert surprise(observed, rest / rest.sum()) < 4
    assert draw_others(torch.tensor([0.0, 1.0]), 1, [0.5, 0.5]) == ()


@pytest.mark.parametrize(
    ("constants", "cuts", "count"),
    [
        (WIDE, {}, 400),
        pytest.param(WIDE, {}, 8000, marks=SLOW),
        pytest.param(WIDE, {"top_p": 0.7}, 8000, marks=SLOW),
        pytest.param({"draft_tokens": 4, "draft_tree": (4,)}, {"top_k": 3}, 8000, marks=SLOW),
        pytest.param({"draft_tokens": 4, "draft_confidence": 0.3}, {}, 8000, marks=SLOW),
        pytest.param({"draft_tokens": 9, "draft_tree_threshold": 0.05}, {}, 8000, marks=SLOW),
    ],
)
def test_replies_are_distributed_as_the_targets(
    constants: dict[str, object], cuts: dict[str, float], count: int
) -> None:
    target, draft = (RandomModel(seed, SIZE, 0.3) for seed in (1, 2))
    rule = Sequoia()
    requests = [
        request_of(rule, constants, max_new_tokens=2, temperature=1.0, seed=seed, **cuts)
        for seed in range(count)
    ]
    replies = Counter(tuple(tokens_of(steps)) for steps in decode_together(target, draft, requests))
    sampling = SamplingParams(temperature=1.0, **cuts)

    def law(ids: Sequence[int]) -> list[float]:
        return distribution(target(ids).softmax(-1)[None], [sampling])[0].tolist()  # type: ignore[no-any-return]

    pairs = [(a, b) for a in range(SIZE) for b in range(SIZE)]
    expected = torch.tensor([law([0])[a] * law([0, a])[b] for a, b in pairs])
    observed = torch.tensor([float(replies[pair]) for pair in pairs])
    assert surprise(observed, expected) < 4


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_without_siblings_it_is_speculative_decoding(temperature: float) -> None:
    target, draft = (RandomModel(seed, 20, 0.5) for seed in (1, 2))
    sampling = {"max_new_tokens": 60, "temperature": temperature, "seed": 4}
    carrying = replace(Speculative(), after_match="carry")
    assert decode_one(target, draft, request_of(Sequoia(), {}, **sampling)) == decode_one(
        target, draft, request_of(carrying, {}, **sampling)
    )


@pytest.mark.parametrize("shape", [(3, 2, 1, 1, 2), (3,), (1, 3)])
def test_a_sampled_reply_depends_on_the_number_of_siblings_alone(shape: tuple[int, ...]) -> None:
    target, draft = (RandomModel(seed, 20, 0.5) for seed in (1, 2))
    tree = {"draft_tokens": sum(shape), "draft_tree": shape}
    for seed in range(6):
        whole, short, other = (
            request_of(Sequoia(), constants, temperature=1.0, seed=seed, max_new_tokens=tokens)
            for constants, tokens in ((WIDE, 24), (WIDE, 5), (tree, 24))
        )
        tokens = tokens_of(decode_one(target, draft, whole))
        assert tokens_of(decode_one(target, draft, short)) == tokens[:5]
        assert tokens_of(decode_one(target, draft, other)) == tokens
        # Beside others with the same seed, of which none may draft as many tokens as it would.
        batch = Batch(ScriptedEngine(target, draft), rows_at_once=8)
        generations = [batch.add(whole) for _ in range(4)]
        while not all(one.ended for one in generations):
            batch.step()
        assert all(tokens_of([*one.steps]) == tokens for one in generations)


def test_greedy_replies_are_the_targets_own() -> None:
    target, draft = (RandomModel(seed, 20, 0.5) for seed in (1, 2))
    own = decode_one(target, draft, request_of(TargetOnly(), max_new_tokens=60))
    steps = decode_one(target, draft, request_of(Sequoia(), WIDE, max_new_tokens=60))
    assert tokens_of(steps) == tokens_of(own)
    chain = decode_one(target, draft, request_of(Sequoia(), {"draft_tokens": 3}, max_new_tokens=60))
    assert steps[-1].block < chain[-1].block  # siblings were taken


def blocks(rule: Rule, constants: dict[str, object], *, share: float) -> int:
    """Passes of the target for 20 sampled replies of 30 tokens."""
    target, draft = (RandomModel(seed, 30, share) for seed in (1, 2))
    requests = [
        request_of(rule, constants, max_new_tokens=30, temperature=1.0, seed=seed)
        for seed in range(20)
    ]
    return sum(steps[-1].block + 1 for steps in decode_together(target, draft, requests))


def test_rounds_accept_more_siblings_than_a_draw_of_its_own() -> None:
    by_draw = blocks(Speculative(), WIDE, share=0.6)
    assert blocks(Sequoia(), WIDE, share=0.6) < 0.98 * by_draw
    assert by_draw < blocks(Speculative(), {"draft_tokens": 3}, share=0.6)


def test_other_rules_draw_the_same_tokens_with_a_fixed_tree_as_with_a_chain() -> None:
    target, draft = (RandomModel(seed, 20, 0.5) for seed in (1, 2))
    replies = [
        decode_one(
            target,
            draft,
            request_of(SSD(), constants, max_new_tokens=60, temperature=0.8, seed=2),
        )
        for constants in ({"draft_tokens": 3}, WIDE)
    ]
    chain, tree = ([(s.token, s.matched, s.scheme, s.alpha) for s in one] for one in replies)
    assert chain == tree
    siblings = [one for one, after in pairwise(replies[1]) if one.block == after.block]
    assert not all(one.matched for one in siblings)
