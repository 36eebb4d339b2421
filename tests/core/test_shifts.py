"""Penalties and biases: their arithmetic, and replies of models that have them by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers.decoding import decode_together, request_of, tokens_of
from helpers.models import RandomModel
from torch import Tensor

from safedraft.core.config import SamplingParams
from safedraft.core.constraint import Constrained, restrict
from safedraft.core.reference import shift
from safedraft.core.request import Request
from safedraft.core.rule import State
from safedraft.core.shifts import Shifts
from safedraft.rules import find_rule

LOGITS = torch.tensor([4.0, -4.0, 2.0, -2.0, 0.0])


@pytest.mark.parametrize(
    ("penalties", "prompt", "reply", "drafts", "expected"),
    [
        ({"presence_penalty": 0.5}, [0], [2, 2], [3], [4, -4, 1.5, -2.5, 0]),
        ({"presence_penalty": -0.5}, [0], [2, 2], [3], [4, -4, 2.5, -1.5, 0]),
        ({"frequency_penalty": 0.5}, [0], [2, 2], [2, 3], [4, -4, 0.5, -2.5, 0]),
        ({"repetition_penalty": 2.0}, [0, 1, 1], [2], [3], [2, -8, 1, -4, 0]),
        ({"repetition_penalty": 0.5}, [0, 1], [4], [], [8, -2, 2, -2, 0]),
        ({"repetition_penalty": 2.0}, [0, 99], [], [], [2, -4, 2, -2, 0]),  # 99: of no shared id
        (
            {"repetition_penalty": 2.0, "presence_penalty": 1.0, "frequency_penalty": 0.5},
            [0], [2, 2], [], [2, -4, -1, -2, 0],
        ),
        ({"logit_bias": {1: 100, 2: -1.5}}, [0], [2], [], [4, 96, 0.5, -2, 0]),
        ({"logit_bias": {1: 6, 2: -4}, "repetition_penalty": 2.0}, [1], [2], [], [4, 1, -4, -2, 0]),
    ],
)  # fmt: skip
def test_what_was_said_is_penalized(
    penalties: dict[str, Any],
    prompt: list[int],
    reply: list[int],
    drafts: list[int],
    expected: list[float],
) -> None:
    sampling = SamplingParams(**penalties)
    shifts = Shifts(sampling, prompt)
    for token in reply:
        shifts.decide(token)
    before = LOGITS.clone()
    assert shifts.apply(drafts, LOGITS).tolist() == expected
    assert before.equal(LOGITS)
    known = [token for token in prompt if token < 5]
    assert shift(LOGITS, known, [*reply, *drafts], sampling).tolist() == expected


def test_a_shift_is_not_lost_in_half_precision() -> None:
    sampling = SamplingParams(frequency_penalty=0.01)
    shifts = Shifts(sampling, [])
    shifts.decide(1)
    rows = torch.full((2, 3), 30.0, dtype=torch.bfloat16)
    shifted, failed = restrict(rows, [Constrained([shifts], []), Constrained([], [])])
    assert not failed
    assert shifted.tolist() == [pytest.approx([30, 29.99, 30]), [30, 30, 30]]


def test_a_request_without_penalties_changes_nothing() -> None:
    assert request_of().constraints(State()) == []


class Shifted:
    """A model that penalizes what was said by itself; a target's prompt is 7 and its last id."""

    def __init__(self, model: RandomModel, sampling: SamplingParams) -> None:
        self.model, self.sampling = model, sampling

    def __call__(self, ids: Sequence[int]) -> Tensor:
        return shift(self.model(ids), (7, ids[1]), ids[2:], self.sampling)


@pytest.mark.parametrize("rule", ["ssd", "speculative", "target_only", "ssd_easd"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("draft_tokens", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize(
    "penalties",
    [
        pytest.param({"presence_penalty": 2.0, "frequency_penalty": 1.0}, marks=pytest.mark.slow),
        pytest.param({"repetition_penalty": 2.0}, marks=pytest.mark.slow),
        pytest.param({"presence_penalty": -0.5, "repetition_penalty": 0.5}, marks=pytest.mark.slow),
        {"logit_bias": {3: 4.0, 5: -100.0}, "repetition_penalty": 1.5, "frequency_penalty": 1.0},
    ],
)
def test_it_is_as_if_both_models_were_shifted(
    rule: str, temperature: float, draft_tokens: int, penalties: dict[str, Any]
) -> None:
    models = [RandomModel(seed, 30, shared=0.8, levels=8) for seed in (3, 4)]
    found = find_rule(rule)
    drafting = {"draft_tokens": draft_tokens}
    constants = drafting if "draft_tokens" in found.config.model_fields else {}

    def requests(**more: Any) -> list[Request]:
        own = {"temperature": temperature, "max_new_tokens": 25}
        return [
            request_of(found, constants, ((7, n), (8, n)), seed=n, **own, **more) for n in range(3)
        ]

    together = decode_together(*models, requests(**penalties))
    alone = [decode_together(*models, [one])[0] for one in requests(**penalties)]
    own = [Shifted(model, SamplingParams(**penalties)) for model in models]
    expected = decode_together(*own, requests())
    plain = decode_together(*models, requests())
    for replies in (together, alone):
        assert list(map(tokens_of, replies)) == list(map(tokens_of, expected))
        assert [[step.matched for step in reply] for reply in replies] == [
            [step.matched for step in reply] for reply in expected
        ]
    assert list(map(tokens_of, together)) != list(map(tokens_of, plain))
