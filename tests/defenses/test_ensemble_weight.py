"""The fixed mixture: v at drafted positions, P at the bonus, and Transformers' own tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import RandomModel
from test_sampling import surprise

import safedraft
from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.core.errors import SafeDraftError
from safedraft.defenses import ensemble_weight


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_drafted_positions_are_the_mixtures_and_the_bonus_is_the_targets(weight: float) -> None:
    target, draft = (RandomModel(seed, 12, 0.6) for seed in (1, 2))
    sampling = SamplingParams(max_new_tokens=150)
    sessions = target.session(), draft.session()
    steps = list(ensemble_weight(weight)(*sessions, [0], [3], SSDConfig(), sampling))
    said: list[int] = []
    for step in steps:
        p, q = target([0, *said]).softmax(-1), draft([3, *said]).softmax(-1)
        mixture = p if step.draft_probability is None else weight * p + (1 - weight) * q
        assert step.token == int(mixture.argmax())
        said.append(step.token)
    bonus = [step for step in steps if step.draft_probability is None]
    assert bonus
    assert {step.matched for step in bonus} == {False}
    assert {step.strength for step in steps} == {0.0, 1 - weight}


@pytest.mark.parametrize("weight", [0.3, 0.7])
def test_a_sampled_position_is_distributed_as_the_mixture(weight: float) -> None:
    target, draft = (RandomModel(seed, 10) for seed in (1, 2))
    counts = torch.zeros(10)
    decoder = ensemble_weight(weight)
    for seed in range(3000):
        sampling = SamplingParams(temperature=2.0, max_new_tokens=1, seed=seed)
        (step,) = decoder(target.session(), draft.session(), [0], [0], SSDConfig(), sampling)
        counts[step.token] += 1
    p, q = ((model([0]) / 2.0).softmax(-1) for model in (target, draft))
    assert surprise(counts, weight * p + (1 - weight) * q) < 4
    assert surprise(counts, p) > 4  # the test would see the target's own distribution


def test_greedy_tokens_are_those_of_transformers(tiny_pair: tuple[Path, Path]) -> None:
    pair = safedraft.load_pair(target=str(tiny_pair[0]), draft=str(tiny_pair[1]))
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

    def ours(decoder: object) -> list[int]:
        stream = pair.stream_ids(
            safedraft.Prompts(prompt, prompt),
            sampling=SamplingParams(max_new_tokens=length),
            config=SSDConfig(draft_tokens=3),
            decoder=decoder,  # type: ignore[arg-type]
        )
        return [token.id for token in stream.drain().trace]

    # Near the length limit Transformers drafts one token fewer, which shifts the bonus.
    assert ours(ensemble_weight(weight))[: length - 4] == theirs[: length - 4]
    assert ours(ensemble_weight(0.999))[: length - 4] != theirs[: length - 4]


@pytest.mark.parametrize("weight", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_weight_that_is_no_mixture_is_refused(weight: float) -> None:
    with pytest.raises(SafeDraftError, match="between 0 and 1"):
        ensemble_weight(weight)
