"""Training of the risk probe: a logistic regression on the draft's last hidden states.

The states are read where the assistant's turn begins, with the engine and the adapter that will
decode. No model is changed, so it takes minutes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from safedraft.core.errors import SafeDraftError
from safedraft.core.risk import RiskProbe
from safedraft.core.session import Pass, SessionEngine
from safedraft.engines.base import Capability
from safedraft.training.config import RiskTrainingConfig
from safedraft.training.requests import SHIPPED, TrainingSplit
from safedraft.training.risk_data import RatedConversation, build_conversations

if TYPE_CHECKING:
    from safedraft.pair import Pair

_STAGES: dict[TrainingSplit, str] = {
    "train": "states of the training data",
    "calibration": "states of the checks",
}
_TOGETHER = 8  # conversations in a pass
_ITERATIONS = 200  # of the optimizer, which stops long before

Report = Callable[[str, int, int], None]
"""Called with the stage, the number of conversations read, and their total number."""


class Flagged(NamedTuple):
    """How many conversations of one kind in one kind of surroundings the probe calls risky."""

    kind: str
    surroundings: str
    flagged: int
    total: int


class RatedState(NamedTuple):
    """A conversation, and the draft's last hidden state at its end, ``[H]`` in float32."""

    conversation: RatedConversation
    state: Tensor


class TrainedProbe(NamedTuple):
    """A probe, and what it says of conversations that it was not trained on."""

    probe: RiskProbe
    checks: list[Flagged]


def train_probe(pair: Pair, config: RiskTrainingConfig, report: Report) -> TrainedProbe:
    """Train a probe for the draft of a pair, as the pair's engine computes its states.

    Raises:
        SafeDraftError: the engine hands out no hidden states, or the draft has no tokenizer.
    """
    pair.engine.capabilities.require(Capability.SESSIONS, "training a risk probe")
    training, checking = (
        _read_states(pair, build_conversations(split, config), stage, report)
        for split, stage in _STAGES.items()
    )
    harmful = torch.tensor([conversation.harmful for conversation, _ in training])
    probe = fit_probe(torch.stack([state for _, state in training]), harmful, config.ridge)
    probe = RiskProbe(probe.weight, probe.bias + _find_shift(probe, checking, config.false_alarms))
    return TrainedProbe(probe, count_flagged(probe, checking))


def _read_states(
    pair: Pair, conversations: Sequence[RatedConversation], stage: str, report: Report
) -> list[RatedState]:
    """Read the draft's last hidden state at the end of each conversation that fits its context."""
    assert isinstance(pair.engine, SessionEngine)
    prompts = [(one, pair.prompts(one.messages).draft) for one in conversations]
    fitting = [(one, ids) for one, ids in prompts if len(ids) <= pair.context_length]
    fitting.sort(key=lambda item: len(item[1]))
    states: list[RatedState] = []
    for start in range(0, len(fitting), _TOGETHER):
        report(stage, start, len(fitting))
        batch = fitting[start : start + _TOGETHER]
        sessions = [pair.engine.session("draft") for _ in batch]
        pair.engine.forward(
            [Pass(session, ids, 1) for session, (_, ids) in zip(sessions, batch, strict=True)]
        )
        states += [
            RatedState(one, session.hidden[-1].cpu())
            for session, (one, _) in zip(sessions, batch, strict=True)
        ]
    report(stage, len(fitting), len(fitting))
    return states


def fit_probe(states: Tensor, harmful: Tensor, ridge: float) -> RiskProbe:
    """Fit a logistic regression with a ridge penalty on standardized states.

    Args:
        states: ``[n, H]``.
        harmful: ``[n]``, truth values.
        ridge: weight of the squared norm of the weights, beside the sum of the losses.

    Raises:
        SafeDraftError: only one of the two classes is there.
    """
    if harmful.all() or not harmful.any():
        raise SafeDraftError("a risk probe needs harmful and harmless requests to learn from")
    mean, spread = states.double().mean(0), states.double().std(0) + 1e-6
    inputs = (states.double() - mean) / spread
    weight = torch.zeros(states.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=_ITERATIONS, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = inputs @ weight[:-1] + weight[-1]
        total = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, harmful.double(), reduction="sum"
        )
        total = total + ridge / 2 * weight[:-1].square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    fitted = weight.detach()
    scaled = fitted[:-1] / spread
    return RiskProbe(scaled.float(), float(fitted[-1] - scaled @ mean))


def count_flagged(probe: RiskProbe, states: Sequence[RatedState]) -> list[Flagged]:
    """Count the conversations whose risk is above one half, by kind and surroundings."""
    cells: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
    for conversation, state in states:
        request = conversation.request
        origin = "" if request.source == SHIPPED else f", {request.source}"
        cells[request.kind + origin, conversation.surroundings].append(probe.read(state) > 0.5)
    return [Flagged(*cell, sum(flags), len(flags)) for cell, flags in sorted(cells.items())]


def _find_shift(probe: RiskProbe, states: Sequence[RatedState], false_alarms: float) -> float:
    """The change of the bias with which the given share of harmless conversations is flagged."""
    harmless = [state for conversation, state in states if not conversation.harmful]
    if not harmless:
        raise SafeDraftError("no harmless request is held out: take more (--set requests=)")
    logits = torch.stack(harmless) @ probe.weight + probe.bias
    return -float(logits.quantile(1 - false_alarms))
