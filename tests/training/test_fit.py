"""Fits of risk probes: a logistic regression, and a network with one hidden layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safedraft.core.errors import SafeDraftError
from safedraft.core.risk import RiskProbe
from safedraft.training.config import RiskTrainingConfig
from safedraft.training.fit import fit_network, fit_regression

SMALL = RiskTrainingConfig(
    networks=3,
    units=8,
    epochs=100,
    batch_size=32,
    learning_rate=0.01,
    weight_decay=0.0,
    dropout=0.0,
)


def states_of(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """States whose third number tells the harmful half, among larger ones that tell nothing."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(count, 8, generator=generator) * torch.tensor([50.0, *[1.0] * 7])
    harmful = torch.arange(count) % 2 == 0
    states[:, 2] += torch.where(harmful, 3.0, -3.0)
    return states, harmful


def count_right(probe: RiskProbe, states: Tensor, harmful: Tensor) -> int:
    return int(((probe.logits(states) > 0) == harmful).sum())


def test_the_regression_tells_the_classes_apart_on_other_states() -> None:
    probe = fit_regression(*states_of(200, 1), ridge=1.0)
    assert count_right(probe, *states_of(200, 2)) > 190
    assert int(probe.weight.abs().argmax()) == 2
    assert fit_regression(*states_of(200, 1), ridge=1e4).weight.norm() < probe.weight.norm() / 3


def test_the_regression_is_at_the_minimum_of_its_loss() -> None:
    states, harmful = states_of(60, 3)
    ridge = 2.0
    probe = fit_regression(states, harmful, ridge)
    spread = states.double().std(0) + 1e-6
    standard = (states.double() - states.double().mean(0)) / spread
    chances = probe.logits(states).double().sigmoid()
    gradient = standard.T @ (chances - harmful.double()) + ridge * probe.weight.double() * spread
    assert gradient.abs().max() < 1e-3


def test_the_network_tells_apart_what_no_linear_function_does() -> None:
    states, _ = states_of(400, 1)
    others, _ = states_of(400, 2)
    inside, inside_others = (part[:, 2].abs() < 3.0 for part in (states, others))
    assert count_right(fit_regression(states, inside, 1.0), others, inside_others) < 280
    probe = fit_network(states, inside, SMALL)
    assert count_right(probe, others, inside_others) > 340
    assert probe.width == 8
    assert probe.weight.shape == (24,)


def test_equal_settings_give_the_same_network_and_leave_torch_s_numbers_alone() -> None:
    states, harmful = states_of(80, 1)
    torch.manual_seed(7)
    following = torch.rand(1)
    torch.manual_seed(7)
    one, same = (fit_network(states, harmful, SMALL) for _ in range(2))
    assert torch.rand(1) == following
    other = fit_network(states, harmful, SMALL.model_copy(update={"seed": 1}))
    assert one.logits(states).equal(same.logits(states))
    assert not one.logits(states).equal(other.logits(states))


def test_a_number_that_never_varies_changes_nothing() -> None:
    states, harmful = states_of(80, 1)
    same = torch.cat([states, torch.full((80, 1), 100.7)], dim=1)
    probe = fit_network(same, harmful, SMALL)
    assert count_right(probe, same, harmful) == 80


def test_one_class_is_not_enough() -> None:
    states, harmful = states_of(10, 1)
    for fit in (lambda *data: fit_regression(*data, 1.0), lambda *data: fit_network(*data, SMALL)):
        with pytest.raises(SafeDraftError, match="harmful and harmless"):
            fit(states[harmful], harmful[harmful])
