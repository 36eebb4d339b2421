"""Training of risk probes: small classifiers of the models' last hidden states.

The states are read where the assistant's turn begins and, if the settings say so, where the
request's text ends, with the engine and the adapter that will decode. No model is changed, so
training takes minutes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from safedraft.core.errors import SafeDraftError
from safedraft.core.risk import RiskProbe
from safedraft.core.session import Which
from safedraft.engines.base import Capability
from safedraft.training.config import RiskTrainingConfig
from safedraft.training.fit import fit_network
from safedraft.training.ngrams import NgramClassifier
from safedraft.training.requests import OWN_SOURCES, SHIPPED, Sources
from safedraft.training.states import (
    STAGES,
    RatedState,
    Report,
    choose_conversations,
    read_both,
)

if TYPE_CHECKING:
    from safedraft.pair import Pair

Fit = Callable[[Tensor, Tensor], RiskProbe]
"""Fits a probe to states ``[n, H]`` and to whether each is of a harmful request, ``[n]``."""


class Flagged(NamedTuple):
    """Counts of conversations of one kind, in one kind of surroundings, classified as risky."""

    kind: str
    surroundings: str
    probe: int
    """Number that the probe classifies as risky."""
    ngrams: int
    """Number by the wording alone (``NgramClassifier``), with as many false alarms in all."""
    total: int


class LeftOut(NamedTuple):
    """Counts of the conversations of a source that training on the other sources calls risky."""

    source: str
    harmful: bool
    """Whether the harmful or the harmless conversations are counted."""
    probe: int
    """Number that the probe classifies as risky."""
    ngrams: int
    """Number by the wording alone."""
    total: int


class TrainedProbe(NamedTuple):
    """A probe, and its results on conversations that it was not trained on."""

    probe: RiskProbe
    checks: list[Flagged]
    left_out: list[LeftOut]


class TrainedProbes(NamedTuple):
    """The probes in the file of an adapter (``safedraft.models.probe_file``), with their checks."""

    draft: TrainedProbe
    both: TrainedProbe


def train_probes(
    pair: Pair, config: RiskTrainingConfig, report: Report, sources: Sources = OWN_SOURCES
) -> TrainedProbes:
    """Train probes for a pair, as its engine computes the states of its models.

    Raises:
        SafeDraftError: the engine gives no access to hidden states, or a model has no tokenizer.
    """
    pair.engine.capabilities.require(Capability.SESSIONS, "training a risk probe")
    training, checking = (
        read_both(
            pair,
            choose_conversations(split, config, sources),
            stage,
            report,
            reads_text=config.reads_text,
        )
        for split, stage in STAGES.items()
    )
    learn = partial(
        learn_risk,
        fit=partial(fit_network, config=config),
        false_alarms=config.false_alarms,
        reads_text=config.reads_text,
    )
    return TrainedProbes(
        learn(training[0], checking[0]),
        learn(training[1], checking[1], reads=("draft", "target")),
    )


def learn_risk(
    training: Sequence[RatedState],
    checking: Sequence[RatedState],
    fit: Fit,
    false_alarms: float,
    reads: tuple[Which, ...] = ("draft",),
    *,
    reads_text: bool = False,
) -> TrainedProbe:
    """Train a probe from states that are read, and check it.

    Args:
        training: states that it learns from.
        checking: states that it is checked on, which also set its bias.
        fit: fits a probe.
        false_alarms: share of the harmless conversations in ``checking`` that it calls risky.
        reads: the models that computed the states.
        reads_text: whether those at the end of the text are among them.

    Raises:
        SafeDraftError: one of the two kinds of requests is missing.
    """
    learned = _Learned.fit(training, checking, fit, false_alarms)
    bias = learned.probe.bias - learned.bound
    probe = replace(learned.probe, bias=bias, reads=reads, reads_text=reads_text)
    checks = count_flagged(checking, learned.flag(checking))
    left_out = leave_out_sources(training, checking, fit, false_alarms)
    return TrainedProbe(probe, checks, left_out)


def leave_out_sources(
    training: Sequence[RatedState],
    checking: Sequence[RatedState],
    fit: Fit,
    false_alarms: float,
) -> list[LeftOut]:
    """Leave out each source in turn, and count what is called risky of its conversations.

    The states are those that were read already. A source is passed over if no harmful or no
    harmless requests are left without it.
    """
    counts = []
    for source in sorted({_source_of(one) for one in training}):
        own = [one for one in (*training, *checking) if _source_of(one) == source]
        learning, held_out = (
            [one for one in part if _source_of(one) != source] for part in (training, checking)
        )
        kinds = {one.conversation.harmful for one in learning}
        if len(kinds) < 2 or all(one.conversation.harmful for one in held_out):
            continue
        flags = _Learned.fit(learning, held_out, fit, false_alarms).flag(own)
        for harmful in (True, False):
            found = [
                flag
                for one, flag in zip(own, flags, strict=True)
                if one.conversation.harmful is harmful
            ]
            if found:
                probe, ngrams = (sum(flag[which] for flag in found) for which in (0, 1))
                counts.append(LeftOut(source, harmful, probe, ngrams, len(found)))
    return counts


class _Learned(NamedTuple):
    """A probe and a classifier of wordings that learned from the same conversations."""

    probe: RiskProbe
    words: NgramClassifier
    bound: float
    """Conversations with a larger logit are classified as risky by the probe."""
    word_bound: float

    @classmethod
    def fit(
        cls,
        training: Sequence[RatedState],
        checking: Sequence[RatedState],
        fit: Fit,
        false_alarms: float,
    ) -> _Learned:
        """Learn from ``training``, with as many false alarms of both among ``checking``."""
        harmful = [one.conversation.harmful for one in training]
        states = torch.stack([one.state for one in training])
        probe = fit(states, torch.tensor(harmful))
        words = NgramClassifier([one.ids for one in training], harmful)
        bounds = (
            _find_bound(values, checking, false_alarms) for values in _score(probe, words, checking)
        )
        return cls(probe, words, *bounds)

    def flag(self, states: Sequence[RatedState]) -> list[tuple[bool, bool]]:
        """Whether the probe and the n-grams classify each conversation as risky."""
        logits, scores = _score(self.probe, self.words, states)
        return [
            (logit > self.bound, score > self.word_bound)
            for logit, score in zip(logits, scores, strict=True)
        ]


def _score(
    probe: RiskProbe, words: NgramClassifier, states: Sequence[RatedState]
) -> tuple[list[float], list[float]]:
    """The logits of conversations, and the scores of their wordings."""
    if not states:
        return [], []
    logits = probe.logits(torch.stack([one.state for one in states]))
    return logits.tolist(), [words.score(one.ids) for one in states]


def _source_of(state: RatedState) -> str:
    return state.conversation.request.source


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
