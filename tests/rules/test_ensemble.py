"""The fixed mixture: v at drafted positions, P at the bonus, and Transformers' own tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.decoding import decode_one, request_of
from helpers.laws import TOLERANCE, law_of, marginal
from helpers.models import RandomModel

import safedraft
from safedraft.core.config import SamplingParams
from safedraft.core.errors import SafeDraftError
from safedraft.pair import Prompts
from safedraft.rules.ensemble import EnsembleConfig, EnsembleWeight


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("size", "levels"), [(12, 0), (150, 1)])
def test_drafted_positions_are_the_mixtures_and_the_bonus_is_the_targets(
    weight: float, size: int, levels: int
) -> None:
    target, draft = (RandomModel(seed, size, 0.8, levels=levels) for seed in (1, 2))
    request = request_of(EnsembleWeight(), {"weight": weight}, ([0], [3]), max_new_tokens=120)
    steps = decode_one(target, draft, request)
    ids: list[int] = []
    for step in steps:
        p, q = target([0, *ids]).softmax(-1), draft([3, *ids]).softmax(-1)
        mixture = p if step.draft_probability is None else weight * p + (1 - weight) * q
        assert float(mixture[step.token]) == pytest.approx(float(mixture.max()), rel=1e-6)
        ids.append(step.token)
    bonus = [step for step in steps if step.draft_probability is None]
    assert bonus
    assert {step.matched for step in bonus} == {False}
    assert {step.alpha for step in steps} == {0.0, 1 - weight}
    assert {step.scheme for step in steps} == {None}


@pytest.mark.usefixtures("lattice")
@pytest.mark.parametrize("weight", [0.3, pytest.param(0.7, marks=pytest.mark.slow)])
def test_a_sampled_position_is_distributed_as_the_mixture(weight: float) -> None:
    target, draft = (RandomModel(seed, 10)([0]) for seed in (1, 2))
    request = request_of(EnsembleWeight(), {"weight": weight}, temperature=2.0)
    law = law_of(request, target, draft)
    p, q = ((logits / 2.0).softmax(-1) for logits in (target, draft))
    expected = (weight * p + (1 - weight) * q).tolist()
    assert marginal(law, 10) == pytest.approx(expected, abs=TOLERANCE)
    assert marginal(law, 10) != pytest.approx(p.tolist(), abs=TOLERANCE)


def test_greedy_tokens_are_those_of_transformers(tiny_pair: tuple[Path, Path]) -> None:
    pair = safedraft.load_pair(
        target=str(tiny_pair[0]), draft=str(tiny_pair[1]), engine="transformers"
    )
    prompt, length, weight = list(b"ensemble"), 60, 0.3
    for member in (pair.target, pair.draft):  # Transformers does not mask the rows of padding
        member.model.resize_token_embeddings(pair.vocabulary)
    pair.draft.model.generation_config.update(
        num_assistant_tokens=3,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
    )
    theirs = pair.target.model.generate(
        torch.tensor([prompt]),
        assistant_model=pair.draft.model,
        assistant_ensemble_weight=weight,
        max_new_tokens=length,
        do_sample=False,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()

    def ours(share: float) -> list[int]:
        stream = pair.stream_ids(
            Prompts(prompt, prompt),
            sampling=SamplingParams(max_new_tokens=length),
            config=EnsembleConfig(draft_tokens=3, weight=share),
            rule="ensemble_weight",
        )
        return [token.id for token in stream.drain().trace]

    # Near the length limit Transformers drafts one token fewer, which shifts the bonus.
    assert ours(weight)[: length - 4] == theirs[: length - 4]
    assert ours(0.999)[: length - 4] != theirs[: length - 4]


@pytest.mark.parametrize("weight", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_weight_that_is_no_mixture_is_refused(weight: float) -> None:
    with pytest.raises(SafeDraftError, match="weight"):
        EnsembleConfig(weight=weight)
