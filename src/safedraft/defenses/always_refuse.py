"""The end of the scale: every request gets the same refusal, and nothing is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safedraft.core.config import Constants, SamplingParams
from safedraft.defenses.base import refuse
from safedraft.text.messages import Message, conversation
from safedraft.text.results import GenerationResult

if TYPE_CHECKING:
    from safedraft.pair import Pair


def always_refuse(
    pair: Pair, messages: Sequence[Message], sampling: SamplingParams, config: Constants
) -> GenerationResult:
    """Return the fixed refusal, also if the reply has been begun; see ``Defense``."""
    return refuse(pair, conversation(messages), sampling)
