"""Training of the risk probe: a logistic regression on the draft's last hidden states.

The states are read where the assistant's turn begins, with the engine and the adapter that will
decode. No model is changed, so it takes minutes.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from safedraft.core.errors import SafeDraftError
from safedraft.core.risk import RiskProbe
from safedraft.core.session import Pass, SessionEngine, rewind_to
from safedraft.engines.base import Capability
from safedraft.training.config import RiskTrainingConfig
from safedraft.training.conversations import RatedConversation, build_conversations
from safedraft.training.ngrams import NgramClassifier
from safedraft.training.requests import SHIPPED, TrainingSplit, read_own

if TYPE_CHECKING:
    from safedraft.pair import Pair

_STAGES: dict[TrainingSplit, str] = {
    "train": "states of the training data",
    "calibration": "states of the checks",
}
_TOGETHER = 8  # sessions in a pass
_ITERATIONS = 200  # of the optimizer, which stops long before

Report = Callable[[str, int, int], None]
"""Called with the stage, the number of conversations read, and their total number."""


class Flagged(NamedTuple):
    """How many conversations of one kind in one kind of surroundings are called risky."""

    kind: str
    surroundings: str
    probe: int
    """By the probe."""
    ngrams: int
    """By the wording alone (``NgramClassifier``), with as many false alarms in all."""
    total: int


class RatedState(NamedTuple):
    """A conversation, and the draft's last hidden state at its end, ``[H]`` in float32."""

    conversation: RatedConversation
    state: Tensor
    ids: Sequence[int]
    """The prompt."""


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
        read_states(pair, choose_conversations(split, config), stage, report)
        for split, stage in _STAGES.items()
    )
    harmful = [one.conversation.harmful for one in training]
    states, held_out = (torch.stack([one.state for one in part]) for part in (training, checking))
    probe = fit_probe(states, torch.tensor(harmful), config.ridge)
    words = NgramClassifier([one.ids for one in training], harmful)
    logits = (held_out @ probe.weight + probe.bias).tolist()
    scores = [words.score(one.ids) for one in checking]
    bound, word_bound = (
        _find_bound(values, checking, config.false_alarms) for values in (logits, scores)
    )
    flags = [
        (logit > bound, score > word_bound) for logit, score in zip(logits, scores, strict=True)
    ]
    return TrainedProbe(RiskProbe(probe.weight, probe.bias - bound), count_flagged(checking, flags))


def choose_conversations(
    split: TrainingSplit, config: RiskTrainingConfig
) -> list[RatedConversation]:
    """The conversations of a split, or those of some of its requests."""
    own = read_own(split)
    if config.requests and config.requests < len(own):
        own = random.Random(f"requests {config.seed}").sample(own, config.requests)
    return build_conversations(own, config.dressed, config.seed)


def read_states(
    pair: Pair, conversations: Sequence[RatedConversation], stage: str, report: Report
) -> list[RatedState]:
    """Read the draft's last hidden state at the end of each conversation that fits its context.

    Each of a few sessions reads its share of the conversations in the order of their tokens, so
    that a beginning that neighbors have in common is read once.
    """
    assert isinstance(pair.engine, SessionEngine)
    prompts = [(one, pair.prompts(one.messages).draft) for one in conversations]
    fitting = [(one, ids) for one, ids in prompts if len(ids) <= pair.context_length]
    fitting.sort(key=lambda item: item[1])
    share = max(1, math.ceil(len(fitting) / _TOGETHER))
    shares = [fitting[start : start + share] for start in range(0, len(fitting), share)]
    sessions = [pair.engine.session("draft") for _ in shares]
    held: list[list[int]] = [[] for _ in shares]
    states: list[RatedState] = []
    for row in zip_longest(*shares):
        report(stage, len(states), len(fitting))
        reading = [(at, *item) for at, item in enumerate(row) if item]
        passes = [
            Pass(sessions[at], rewind_to(sessions[at], held[at], ids), 1) for at, _, ids in reading
        ]
        pair.engine.forward(passes)
        for at, conversation, ids in reading:
            held[at] = ids
            states.append(RatedState(conversation, sessions[at].hidden[-1].cpu(), ids))
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


def count_flagged(
    states: Sequence[RatedState], flags: Sequence[tuple[bool, bool]]
) -> list[Flagged]:
    """Count what is called risky, by kind and surroundings.

    Args:
        states: the conversations.
        flags: for each, whether the probe and the n-grams call it risky.
    """
    cells: defaultdict[tuple[str, str], list[tuple[bool, bool]]] = defaultdict(list)
    for (conversation, *_), flag in zip(states, flags, strict=True):
        request = conversation.request
        origin = "" if request.source == SHIPPED else f", {request.source}"
        cells[request.kind + origin, conversation.surroundings].append(flag)
    checks = []
    for (kind, surroundings), found in sorted(cells.items()):
        probe, ngrams = (sum(flags) for flags in zip(*found, strict=True))
        checks.append(Flagged(kind, surroundings, probe, ngrams, len(found)))
    return checks


def _find_bound(
    values: Sequence[float], states: Sequence[RatedState], false_alarms: float
) -> float:
    """The value that the given share of harmless conversations exceeds."""
    harmless = [
        value for value, one in zip(values, states, strict=True) if not one.conversation.harmful
    ]
    if not harmless:
        raise SafeDraftError("no harmless request is held out: take more (--set requests=)")
    return float(torch.tensor(harmless).quantile(1 - false_alarms))
