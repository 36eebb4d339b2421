"""T by how many requests run: it changes the speed and no token."""

from __future__ import annotations

import pytest
from small import engine, runner_of, transformers_pair
from test_engine import assert_same, by_the_first_engine, prompts, samplings

pytestmark = pytest.mark.vllm


def test_fewer_tokens_are_drafted_for_many_requests() -> None:
    ids, given = prompts(8, seed=8), samplings(8)
    expected = by_the_first_engine(transformers_pair("near"), ids, given)
    with engine("near", draft_tokens_up_to={1: 4, 3: 2, 8: 1}) as pair:
        drafter = runner_of(pair).drafter
        drafted: set[tuple[int, int]] = set()
        propose = drafter.propose

        def watched(*args: object, **kwargs: int) -> object:
            drafted.add((len(drafter.rows), kwargs["num_speculative_tokens"]))
            return propose(*args, **kwargs)

        drafter.propose = watched
        assert_same(pair.generate_many_ids(ids, sampling=given), expected)
        assert_same(pair.generate_many_ids(ids[:1], sampling=given[:1]), expected[:1])
    assert {(8, 1), (1, 4)} <= drafted
    assert all(count == (4 if load == 1 else 2 if load <= 3 else 1) for load, count in drafted)
