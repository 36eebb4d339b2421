"""Training of the probe that reads a target while it answers, for the defense ``ada_probe``.

Any-Depth Alignment, probing form (arXiv 2510.18081). Harmful and harmless requests have the same
surroundings and the same openings of the reply, and the target continues them. Its last hidden
state is read where the reply begins and, with the assistant's header put after the text, after the
opening and at fixed depths. No model is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from safedraft.core.errors import SafeDraftError
from safedraft.engines.base import Capability
from safedraft.prompts.drawn import draw_target_replies
from safedraft.prompts.phrases import is_refusal
from safedraft.text.encode import turn_header
from safedraft.text.messages import Message
from safedraft.training.config import AdaProbeConfig, TrainingConfig
from safedraft.training.fit import fit_regression
from safedraft.training.requests import OWN_SOURCES, Sources, TrainingSplit
from safedraft.training.risk import TrainedProbe, learn_risk
from safedraft.training.states import (
    STAGES,
    RatedPrompt,
    Report,
    choose_requests,
    read_states,
)
from safedraft.training.training_data import Begun, begin_replies

if TYPE_CHECKING:
    from safedraft.pair import Pair


def train_target_probe(
    pair: Pair, config: AdaProbeConfig, report: Report, sources: Sources = OWN_SOURCES
) -> TrainedProbe:
    """Train a probe for the target of a pair, as the pair's engine computes its states.

    Raises:
        SafeDraftError: the engine gives no access to hidden states, the target has no tokenizer or
            thinks before it answers, or one of the two kinds of requests is missing.
    """
    pair.engine.capabilities.require(Capability.SESSIONS, "training a probe of the target")
    if pair.thinks:
        raise SafeDraftError(
            f"{pair.target.name} thinks before it answers, and the probe reads answers: switch "
            "that off (--template enable_thinking=false)"
        )
    training, checking = (
        read_states(
            pair, list_depths(pair, split, config, report, sources), stage, report, "target"
        )
        for split, stage in STAGES.items()
    )
    fit = partial(fit_regression, ridge=config.ridge)
    return learn_risk(training, checking, fit, config.false_alarms, ("target",))


def list_depths(
    pair: Pair,
    split: TrainingSplit,
    config: AdaProbeConfig,
    report: Report,
    sources: Sources = OWN_SOURCES,
) -> list[RatedPrompt]:
    """The prompts at whose ends the target is read, with their depths as surroundings."""
    openings = TrainingConfig(dressed=config.dressed, seed=config.seed)
    begun = begin_replies(choose_requests(split, config, sources), openings, config.direct_share)
    replies = draw_target_replies(
        pair,
        [one.messages for one in begun],
        max_new_tokens=config.reply_tokens,
        report=partial(report, f"replies, {split}"),
    )
    return [
        prompt
        for one, reply in zip(begun, replies, strict=True)
        for prompt in _read_at(pair, one, reply.text, config)
    ]


def _read_at(pair: Pair, begun: Begun, text: str, config: AdaProbeConfig) -> Iterator[RatedPrompt]:
    """The prompts of one reply; of a refusal none but those that are there before it."""
    assert pair.target.tokenizer is not None
    header = turn_header(pair.target.tokenizer)

    def make_prompt(depth: str, ids: list[int]) -> RatedPrompt:
        return RatedPrompt(replace(begun.conversation, surroundings=depth), ids)

    asked = pair.prompts(begun.conversation.messages).target
    yield make_prompt("  0 tokens", asked)
    if begun.opening:
        yield make_prompt("opening", [*pair.prompts(begun.messages).target, *header])
    if not text or is_refusal(text):
        return
    reply: Message = {"role": "assistant", "content": begun.opening + text}
    said = pair.prompts([*begun.conversation.messages, reply]).target
    longest = min(config.reply_tokens, len(said) - len(asked))
    for depth in range(config.check_interval, longest + 1, config.check_interval):
        yield make_prompt(f"{depth:3} tokens", [*said[: len(asked) + depth], *header])
