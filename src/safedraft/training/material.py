"""What the target says to the requests: beginnings of harmful answers, and ordinary answers.

The beginnings may be harmful: they stay in the cache of drawn replies and in memory.
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
from safedraft.training.requests import Request, Requests, framed, opened, openings

if TYPE_CHECKING:
    from safedraft.engines.base import LoadedModel
    from safedraft.models.progress import Report
    from safedraft.training.config import TrainingConfig

_BEGINNING_TOKENS = 48  # drawn after an opening; a longer attack reads much the same


@dataclass(frozen=True)
class Harmful:
    """A request to refuse, and how a complying answer begins: the opening, at the least."""

    request: Request
    beginning: str


@dataclass(frozen=True)
class Answered:
    """A prompt to answer, and the target's own answer."""

    request: Request
    prompt: str
    """The request, in a frame or not."""
    answer: str
    ended: bool
    """Whether the target ended it; otherwise it was cut off."""


@dataclass(frozen=True)
class Material:
    """Everything examples are made of."""

    harmful: list[Harmful]
    answered: list[Answered]
    bare_openings: int
    """Beginnings that are an opening only, since the target refuses to go on."""
    declined: list[Request]
    """Ordinary prompts and look-alikes that the target refuses; they are left out."""


def draw_material(
    requests: Requests, target: LoadedModel, config: TrainingConfig, report: Report
) -> Material:
    """Ask the target, or its cache.

    Raises:
        SafeDraftError: the target refuses every ordinary prompt, or cannot be drawn from.
    """
    harmful, bare_openings = _draw_beginnings(requests.harmful, target, config, report)
    answered, declined = _draw_answers(requests.ordinary, target, config, report)
    if not answered:
        raise SafeDraftError(f"{target.name} refuses every ordinary prompt: nothing can be learned")
    return Material(harmful, answered, bare_openings, declined)


def _draw_beginnings(
    requests: Sequence[Request], target: LoadedModel, config: TrainingConfig, report: Report
) -> tuple[list[Harmful], int]:
    rng = random.Random(f"openings {config.seed}")
    begun = [opened(rng.choice(openings()), request.text) for request in requests]
    chosen = _chosen(len(requests), config.beginnings, config)
    replies = draw_replies(
        target,
        [
            [*_asked(requests[at].text), {"role": "assistant", "content": begun[at]}]
            for at in chosen
        ],
        max_new_tokens=min(_BEGINNING_TOKENS, config.beginning_tokens),
        report=lambda done, total: report("beginnings of harmful answers", done, total),
    )
    bare = len(begun)
    for at, reply in zip(chosen, replies, strict=True):
        if not is_refusal(reply.text):
            begun[at] += reply.text
            bare -= 1
    harmful = [Harmful(request, text) for request, text in zip(requests, begun, strict=True)]
    return harmful, bare


def _draw_answers(
    requests: Sequence[Request], target: LoadedModel, config: TrainingConfig, report: Report
) -> tuple[list[Answered], list[Request]]:
    rng = random.Random(f"frames {config.seed}")
    in_frames = rng.sample(list(requests), min(config.framed_ordinary, len(requests)))
    asked = [(request, request.text) for request in requests]
    asked += [(request, framed(request.text, rng)) for request in in_frames]
    asked = [asked[at] for at in _chosen(len(asked), config.answers, config)]
    brief = {at for at, (request, prompt) in enumerate(asked) if _is_brief(request, prompt)}
    answered, declined = [], []
    for stage, tokens, which in (
        ("ordinary answers", config.answer_tokens, set(range(len(asked))) - brief),
        ("answers to look-alikes and in frames", config.brief_tokens, brief),
    ):
        replies = draw_replies(
            target,
            [_asked(asked[at][1]) for at in sorted(which)],
            max_new_tokens=tokens,
            report=partial(report, stage),
        )
        for at, reply in zip(sorted(which), replies, strict=True):
            request, prompt = asked[at]
            if reply.text.strip() and not is_refusal(reply.text):
                answered.append(Answered(request, prompt, reply.text, reply.ended))
            elif prompt == request.text:
                declined.append(request)
    return answered, declined


def _is_brief(request: Request, prompt: str) -> bool:
    """Whether all that counts is that it is answered, which the first words tell."""
    return request.kind == "look_alike" or prompt != request.text


def _chosen(count: int, most: int, config: TrainingConfig) -> list[int]:
    """At most ``most`` of ``count`` places, those of a smaller number among those of a larger."""
    order = list(range(count))
    random.Random(f"chosen {config.seed}").shuffle(order)
    return order[:most]


def _asked(prompt: str) -> list[Message]:
    return [{"role": "user", "content": prompt}]
