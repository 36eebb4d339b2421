"""A draft in 8 bits proposes nearly what it proposes otherwise, and the target is as it was."""

from __future__ import annotations

import pytest
from small import engine, runner_of, transformers_pair
from test_engine import by_the_first_engine, chances, prompts, samplings

from safedraft import SamplingParams

pytestmark = pytest.mark.vllm


def test_a_pairs_draft_in_8_bits() -> None:
    ids, given = prompts(6, seed=3), [SamplingParams(max_new_tokens=1)] * 6
    expected = by_the_first_engine(transformers_pair("near"), ids, given)
    with engine("near", draft_dtype="int8", dtype="auto") as pair:
        said = pair.generate_many_ids(ids, sampling=given)
        longer = pair.generate_many_ids(ids, sampling=samplings(6))
        runner = runner_of(pair)
        rounded = [
            [hasattr(layer, "int8") for layer in model.modules() if hasattr(layer, "quant_method")]
            for model in (runner.model, runner.drafter.model)
        ]
    assert not any(rounded[0])
    assert rounded[1].count(False) == 1  # the embedding
    assert all(len(reply.trace) == 40 for reply in longer)
    for one, other in zip(said, expected, strict=True):
        assert one.trace[0].id == other.trace[0].id
        # vLLM takes float32 for bfloat16 where no type is named, which moves the target's as well.
        assert chances(one) == pytest.approx(chances(other), abs=0.06)


def test_a_named_type_is_the_drafts_as_well() -> None:
    with engine("near", draft_dtype="int8", dtype="float32") as pair:
        layers = runner_of(pair).drafter.model.modules()
        assert not any(hasattr(layer, "int8") for layer in layers)
