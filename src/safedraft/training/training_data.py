"""Training data from the target: beginnings of harmful answers, and ordinary answers.

The beginnings may be harmful: they are kept only in memory and in the cache of drawn replies.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from safedraft.core.errors import SafeDraftError
from safedraft.prompts.drawn import draw_replies
from safedraft.prompts.phrases import is_refusal
from safedraft.text.messages import Message
from safedraft.training.requests import (
    TrainingRequest,
    TrainingRequests,
    add_frame,
    fill_opening,
    read_openings,
)

if TYPE_CHECKING:
    from safedraft.engines.base import LoadedModel
    from safedraft.models.progress import ReportProgress
    from safedraft.training.config import TrainingConfig

_BEGINNING_TOKENS = 48  # drawn after an opening; more tokens add little variety


@dataclass(frozen=True)
class Harmful:
    """A request to refuse and the beginning of a compliant answer, which is at least an opening."""

    request: TrainingRequest
    beginning: str


@dataclass(frozen=True)
class Answered:
    """A prompt to answer, and the target's own answer."""

    request: TrainingRequest
    prompt: str
    """Text of the request, possibly in a jailbreak frame."""
    answer: str
    ended: bool
    """Whether the target ended its answer; otherwise the answer was cut off."""


@dataclass(frozen=True)
class TrainingData:
    """Requests and the target's answers, from which examples are made."""

    harmful: list[Harmful]
    answered: list[Answered]
    bare_openings: int
    """Number of beginnings that are an opening only, since the target refuses to continue."""
    declined: list[TrainingRequest]
    """Ordinary prompts and look-alikes that the target refuses; examples omit them."""


def draw_training_data(
    requests: TrainingRequests, target: LoadedModel, config: TrainingConfig, report: ReportProgress
) -> TrainingData:
    """Draw the target's answers, or read them from the cache.

    Raises:
        SafeDraftError: the target refuses every ordinary prompt, or cannot generate replies.
    """
    harmful, bare_openings = _draw_beginnings(requests.harmful, target, config, report)
    answered, declined = _draw_answers(requests.ordinary, target, config, report)
    if not answered:
        raise SafeDraftError(f"{target.name} refuses every ordinary prompt: nothing can be learned")
    return TrainingData(harmful, answered, bare_openings, declined)


def _draw_beginnings(
    requests: Sequence[TrainingRequest],
    target: LoadedModel,
    config: TrainingConfig,
    report: ReportProgress,
) -> tuple[list[Harmful], int]:
    rng = random.Random(f"openings {config.seed}")
    beginnings = [fill_opening(rng.choice(read_openings()), request.text) for request in requests]
    chosen = _choose(len(requests), config.beginnings, config)
    replies = draw_replies(
        target,
        [
            [*_user_message(requests[at].text), {"role": "assistant", "content": beginnings[at]}]
            for at in chosen
        ],
        max_new_tokens=min(_BEGINNING_TOKENS, config.beginning_tokens),
        report=lambda done, total: report("beginnings of harmful answers", done, total),
    )
    openings_only = len(beginnings)
    for at, reply in zip(chosen, replies, strict=True):
        if not is_refusal(reply.text):
            beginnings[at] += reply.text
            openings_only -= 1
    harmful = [Harmful(request, text) for request, text in zip(requests, beginnings, strict=True)]
    return harmful, openings_only


def _draw_answers(
    requests: Sequence[TrainingRequest],
    target: LoadedModel,
    config: TrainingConfig,
    report: ReportProgress,
) -> tuple[list[Answered], list[TrainingRequest]]:
    rng = random.Random(f"frames {config.seed}")
    in_frames = rng.sample(list(requests), min(config.framed_ordinary, len(requests)))
    prompts = [(request, request.text) for request in requests]
    prompts += [(request, add_frame(request.text, rng)) for request in in_frames]
    prompts = [prompts[at] for at in _choose(len(prompts), config.answers, config)]
    brief = {at for at, (request, prompt) in enumerate(prompts) if _is_brief(request, prompt)}
    answered, declined = [], []
    for stage, tokens, which in (
        ("ordinary answers", config.answer_tokens, set(range(len(prompts))) - brief),
        ("answers to look-alikes and in frames", config.brief_tokens, brief),
    ):
        replies = draw_replies(
            target,
            [_user_message(prompts[at][1]) for at in sorted(which)],
            max_new_tokens=tokens,
            report=partial(report, stage),
        )
        for at, reply in zip(sorted(which), replies, strict=True):
            request, prompt = prompts[at]
            if reply.text.strip() and not is_refusal(reply.text):
                answered.append(Answered(request, prompt, reply.text, reply.ended))
            elif prompt == request.text:
                declined.append(request)
    return answered, declined


def _is_brief(request: TrainingRequest, prompt: str) -> bool:
    """Whether the first words of an answer are enough: they show that it is no refusal."""
    return request.kind == "look_alike" or prompt != request.text


def _choose(count: int, most: int, config: TrainingConfig) -> list[int]:
    """Choose at most ``most`` of ``count`` indices; a smaller ``most`` gives a subset."""
    order = list(range(count))
    random.Random(f"chosen {config.seed}").shuffle(order)
    return order[:most]


def _user_message(prompt: str) -> list[Message]:
    return [{"role": "user", "content": prompt}]
