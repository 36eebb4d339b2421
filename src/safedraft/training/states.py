"""States that risk probes are trained on: the models' last hidden states of rated conversations."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from safedraft.core.risk import Reading, pick_states
from safedraft.core.session import Pass, SessionEngine, Which, rewind_to
from safedraft.text.encode import turn_header
from safedraft.training.config import ProbeTrainingConfig, RiskTrainingConfig
from safedraft.training.conversations import (
    RatedConversation,
    ask_in_forms,
    build_conversations,
)
from safedraft.training.requests import (
    OWN_SOURCES,
    Sources,
    TrainingRequest,
    TrainingSplit,
    read_requests,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from safedraft.pair import Pair

STAGES: dict[TrainingSplit, str] = {
    "train": "states of the training data",
    "calibration": "states of the checks",
}
"""Text of the progress while the states of a split are read."""

_TOGETHER = 8  # sessions in a pass

Report = Callable[[str, int, int], None]
"""Called with the stage, the number of conversations read, and their total number."""


class RatedPrompt(NamedTuple):
    """A conversation and its token ids."""

    conversation: RatedConversation
    ids: Sequence[int]


class RatedState(NamedTuple):
    """A conversation, and the last hidden states at its end of the models that are read."""

    conversation: RatedConversation
    state: Tensor
    """``[H]`` in float32; the states of the models follow each other, and those at the distances
    that were asked for do within a model."""
    ids: Sequence[int]
    """The prompt of the first model."""


def choose_conversations(
    split: TrainingSplit, config: RiskTrainingConfig, sources: Sources = OWN_SOURCES
) -> list[RatedConversation]:
    """The conversations of a split, or those of some of its requests."""
    chosen = choose_requests(split, config, sources)
    conversations = build_conversations(chosen, config.dressed, config.seed)
    return [*conversations, *ask_in_forms(chosen, config.forms_every, config.seed)]


def choose_requests(
    split: TrainingSplit, config: ProbeTrainingConfig, sources: Sources = OWN_SOURCES
) -> list[TrainingRequest]:
    """The requests of a split, or some of them."""
    found = read_requests(split, sources)
    requests = [*found.harmful, *found.ordinary]
    if config.requests and config.requests < len(requests):
        return random.Random(f"requests {config.seed}").sample(requests, config.requests)
    return requests


def read_both(
    pair: Pair,
    conversations: Sequence[RatedConversation],
    stage: str,
    report: Report,
    *,
    reads_text: bool = False,
) -> tuple[list[RatedState], list[RatedState]]:
    """Read the states of the draft, and those of both models of conversations that fit both.

    They are read where the assistant's turn begins and, with ``reads_text``, where the request's
    text ends.
    """
    prompts = [(one, pair.prompts(one.messages)) for one in conversations]

    def read(which: Which, tokenizer: PreTrainedTokenizerBase | None) -> list[RatedState]:
        assert tokenizer is not None
        own = [RatedPrompt(one, getattr(ids, which)) for one, ids in prompts]
        offsets = Reading(turn_header(tokenizer)).offsets(reads_text=reads_text)
        return read_states(pair, own, f"{stage}, {which}", report, which, offsets)

    draft, target = read("draft", pair.draft.tokenizer), read("target", pair.target.tokenizer)
    others = {id(one.conversation): one.state for one in target}
    return draft, [
        one._replace(state=torch.cat([one.state, others[id(one.conversation)]]))
        for one in draft
        if id(one.conversation) in others
    ]


def read_states(
    pair: Pair,
    prompts: Sequence[RatedPrompt],
    stage: str,
    report: Report,
    which: Which = "draft",
    offsets: Sequence[int] = (0,),
) -> list[RatedState]:
    """Read a model's last hidden states at the end of each prompt that fits the context.

    Each of a few sessions reads its share of the prompts in the order of their tokens, so that a
    beginning that neighbors have in common is read once. ``offsets`` are the distances from the
    last token at which states are read.
    """
    assert isinstance(pair.engine, SessionEngine)
    keep = 1 + max(offsets)
    fitting = [prompt for prompt in prompts if keep <= len(prompt.ids) <= pair.context_length]
    fitting.sort(key=lambda prompt: list(prompt.ids))
    share = max(1, math.ceil(len(fitting) / _TOGETHER))
    shares = [fitting[start : start + share] for start in range(0, len(fitting), share)]
    sessions = [pair.engine.session(which) for _ in shares]
    held: list[Sequence[int]] = [[] for _ in shares]
    states: list[RatedState] = []
    for row in zip_longest(*shares):
        report(stage, len(states), len(fitting))
        reading = [(at, *item) for at, item in enumerate(row) if item]
        passes = [
            Pass(sessions[at], rewind_to(sessions[at], held[at], ids, keep), keep)
            for at, _, ids in reading
        ]
        pair.engine.forward(passes)
        for at, conversation, ids in reading:
            held[at] = ids
            state = pick_states(sessions[at].hidden, offsets).cpu()
            states.append(RatedState(conversation, state, ids))
    report(stage, len(fitting), len(fitting))
    return states
