"""No defense: the target alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safedraft.core.config import Constants, SamplingParams
from safedraft.defenses.base import Defense, answer_undefended
from safedraft.text.messages import Message
from safedraft.text.results import GenerationResult

if TYPE_CHECKING:
    from safedraft.pair import Pair


def target_only(
    pair: Pair,
    messages: Sequence[Message],
    sampling: SamplingParams,
    config: Constants,
    ask: Defense = answer_undefended,
) -> GenerationResult:
    """Return the target's reply to the conversation."""
    return ask(pair, messages, sampling, config)
