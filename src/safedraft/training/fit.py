"""Fits of probes to states: a logistic regression, and a network with one hidden layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, dropout

from safedraft.core.errors import SafeDraftError
from safedraft.core.risk import HiddenLayer, RiskProbe
from safedraft.training.config import RiskTrainingConfig

_ITERATIONS = 200  # of the regression's optimizer, which stops long before


def fit_regression(states: Tensor, harmful: Tensor, ridge: float) -> RiskProbe:
    """Fit a logistic regression with a ridge penalty on standardized states.

    Args:
        states: ``[n, H]``.
        harmful: ``[n]``, truth values.
        ridge: weight of the squared norm of the weights, beside the sum of the losses.

    Raises:
        SafeDraftError: only one of the two classes is there.
    """
    _require_both(harmful)
    inputs, mean, spread = _standardize(states)
    weight = torch.zeros(states.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=_ITERATIONS, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = inputs @ weight[:-1] + weight[-1]
        total = binary_cross_entropy_with_logits(logits, harmful.double(), reduction="sum")
        total = total + ridge / 2 * weight[:-1].square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    fitted = weight.detach()
    scaled = fitted[:-1] / spread
    return RiskProbe(scaled.float(), float(fitted[-1] - scaled @ mean))


def fit_network(states: Tensor, harmful: Tensor, config: RiskTrainingConfig) -> RiskProbe:
    """Fit a network with one hidden layer to standardized states.

    Several networks are trained from different initial weights, and their logits are averaged: the
    result is one network with the hidden units of all.

    Args:
        states: ``[n, H]``.
        harmful: ``[n]``, whether each state is of a harmful request.
        config: the settings; equal settings give the same network.

    Raises:
        SafeDraftError: only one of the two classes is there.
    """
    _require_both(harmful)
    inputs, mean, spread = _standardize(states)
    data = inputs.float(), harmful.float()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        networks = [_train_network(*data, config) for _ in range(config.networks)]
    hidden, hidden_bias, output, bias = (torch.cat(parts) for parts in zip(*networks, strict=True))
    scaled = hidden / spread
    layer = HiddenLayer(scaled.float(), (hidden_bias - scaled @ mean).float())
    return RiskProbe(output / config.networks, float(bias.mean()), hidden=layer)


def _train_network(
    inputs: Tensor, labels: Tensor, config: RiskTrainingConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train one network, with dropout of inputs and hidden units.

    Returns:
        Weights ``[U, H]`` and biases ``[U]`` of the hidden units, and weights ``[U]`` and bias
        ``[1]`` of the output.
    """
    layers = torch.nn.Linear(inputs.shape[1], config.units), torch.nn.Linear(config.units, 1)
    weights = [weight for layer in layers for weight in layer.parameters()]
    optimizer = torch.optim.AdamW(weights, config.learning_rate, weight_decay=config.weight_decay)
    for _ in range(config.epochs):
        for batch in torch.split(torch.randperm(len(inputs)), config.batch_size):
            units = layers[0](dropout(inputs[batch], config.dropout)).relu()
            logits = layers[1](dropout(units, config.dropout))[:, 0]
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(logits, labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    first, second = layers
    return first.weight.data, first.bias.data, second.weight.data[0], second.bias.data


def _standardize(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The standardized states, and the mean and spread of each number, in float64."""
    mean, spread = states.double().mean(0), states.double().std(0) + 1e-6
    return (states.double() - mean) / spread, mean, spread


def _require_both(harmful: Tensor) -> None:
    if harmful.all() or not harmful.any():
        raise SafeDraftError("a risk probe needs harmful and harmless requests to learn from")
