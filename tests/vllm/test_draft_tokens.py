"""T by how many requests run: it changes the speed and no token."""

from __future__ import annotations

from typing import Any

import pytest
from small import engine, runner_of, transformers_pair
from test_engine import assert_same, by_the_first_engine, prompts, samplings

from safedraft.core.config import SSDConfig

pytestmark = pytest.mark.vllm


def test_fewer_tokens_are_drafted_for_many_requests() -> None:
    ids, given = prompts(8, seed=8), samplings(8)
    expected = by_the_first_engine(transformers_pair("near"), ids, given)
    with engine("near", draft_tokens_up_to={1: 4, 3: 2, 8: 1}) as pair:
        drafter = runner_of(pair).drafter
        passes: set[tuple[int, int]] = set()
        propose = drafter.propose

        def watched(*args: object, **kwargs: int) -> object:
            passes.add((len(drafter.rows), kwargs["num_speculative_tokens"]))
            return propose(*args, **kwargs)

        drafter.propose = watched
        assert_same(pair.generate_many_ids(ids, sampling=given), expected)
        assert_same(pair.generate_many_ids(ids[:1], sampling=given[:1]), expected[:1])
    assert {(8, 2), (1, 5)} <= passes
    assert all(count == 1 + (4 if load == 1 else 2 if load <= 3 else 1) for load, count in passes)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_gpu_blocks_override": 16, "max_num_batched_tokens": 72}],
    ids=["room for all", "a cache too small for all"],
)
def test_drafts_that_end_early_change_no_token(options: dict[str, Any]) -> None:
    ids, given = prompts(12, seed=9), samplings(12)
    expected = by_the_first_engine(transformers_pair("near"), ids, given)
    early = SSDConfig(draft_tokens=6, draft_confidence=0.1)
    with engine("near", early, **options) as pair:
        drafter = runner_of(pair).drafter
        lengths: list[list[int]] = []
        propose = drafter.propose

        def watched(*args: Any, **kwargs: Any) -> Any:
            drafts = propose(*args, **kwargs)
            lengths.append([len(one) for one in drafts])
            return drafts

        drafter.propose = watched
        assert_same(pair.generate_many_ids(ids, sampling=given), expected)
        assert_same(pair.generate_many_ids(ids[:1], sampling=given[:1]), expected[:1])
    assert {1, 2, 7} <= {length for batch in lengths for length in batch}
    assert any(len(set(batch)) > 1 for batch in lengths)  # some end before others
