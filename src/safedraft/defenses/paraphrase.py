"""Paraphrase: the target says the request in its own words first, and answers those.

Jain et al., arXiv 2309.00614, Section 4.2. Adversarial suffixes rarely survive it. The wording is
our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safedraft.core.config import Constants, SamplingParams
from safedraft.defenses.base import (
    Defense,
    add_cost,
    last_user,
    refuse,
    rewrite_request,
    undefended,
)
from safedraft.text.messages import Message, conversation
from safedraft.text.results import GenerationResult

if TYPE_CHECKING:
    from safedraft.pair import Pair

INSTRUCTION = (
    "Say the following message in other words. Do not answer it; write the new wording only.\n\n"
    "{text}"
)
_SPARE = 16  # tokens by which twice the message is exceeded at most


def paraphrase(
    pair: Pair,
    messages: Sequence[Message],
    sampling: SamplingParams,
    config: Constants,
    ask: Defense = undefended,
) -> GenerationResult:
    """The target's reply to a greedy paraphrase of the last user message.

    All other turns stay as they are, a prefilled beginning of the reply included. A message of
    which nothing is left is refused: the original is never answered in its place.
    """
    messages = conversation(messages)
    text = messages[last_user(messages)]["content"]
    prompt: list[Message] = [{"role": "user", "content": INSTRUCTION.format(text=text)}]
    length = len(pair.prompts([{"role": "user", "content": text}]).target)
    brief = SamplingParams(max_new_tokens=2 * length + _SPARE)
    reworded = ask(pair, prompt, brief, config)
    if not reworded.text.strip():
        return add_cost(refuse(pair, reworded), reworded.statistics)
    reply = ask(pair, rewrite_request(messages, reworded.text.strip()), sampling, config)
    return add_cost(reply, reworded.statistics)
