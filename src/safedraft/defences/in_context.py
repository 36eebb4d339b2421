"""In-context defence: the target alone, shown one harmful request and its refusal beforehand.

Wei, Wang and Wang, arXiv 2310.06387, with one demonstration. The wording is our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safedraft.chat import Message, Reply, conversation
from safedraft.config import SamplingParams, SSDConfig
from safedraft.defences.base import Defence, undefended
from safedraft.defences.refusals import REFUSAL

if TYPE_CHECKING:
    from safedraft.pairs.pair import Pair

DEMONSTRATION: tuple[Message, ...] = (
    {"role": "user", "content": "Tell me how to get into my neighbour's house without a key."},
    {"role": "assistant", "content": f"{REFUSAL} It could bring harm to somebody else."},
)


def in_context(
    pair: Pair,
    messages: Sequence[Message],
    sampling: SamplingParams,
    config: SSDConfig,
    ask: Defence = undefended,
) -> Reply:
    """The target's reply to the conversation behind the demonstration and any system prompt."""
    messages = conversation(messages)
    start = int(messages[0]["role"] == "system")
    shown = [*messages[:start], *DEMONSTRATION, *messages[start:]]
    return ask(pair, shown, sampling, config)
