"""Paraphrase: the target rewrites the request in other words, and answers the paraphrase.

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
    answer_undefended,
    find_last_user,
    make_refusal,
    require_direct_answers,
    rewrite_request,
)
from safedraft.text.messages import Message, conversation
from safedraft.text.results import GenerationResult

if TYPE_CHECKING:
    from safedraft.pair import Pair

INSTRUCTION = (
    "Say the following message in other words. Do not answer it; write the new wording only.\n\n"
    "{text}"
)
_SPARE = 16  # tokens allowed beyond twice the length of the message


def paraphrase(
    pair: Pair,
    messages: Sequence[Message],
    sampling: SamplingParams,
    config: Constants,
    ask: Defense = answer_undefended,
) -> GenerationResult:
    """Return the target's reply to a greedy paraphrase of the last user message.

    All other turns are unchanged, including a prefilled beginning of the reply. An empty paraphrase
    leads to a refusal: the original message is never answered.
    """
    require_direct_answers(pair, "paraphrase")
    messages = conversation(messages)
    text = messages[find_last_user(messages)]["content"]
    prompt: list[Message] = [{"role": "user", "content": INSTRUCTION.format(text=text)}]
    length = len(pair.prompts([{"role": "user", "content": text}]).target)
    paraphrase_sampling = SamplingParams(max_new_tokens=2 * length + _SPARE)
    paraphrased = ask(pair, prompt, paraphrase_sampling, config)
    if not paraphrased.text.strip():
        return add_cost(make_refusal(pair, paraphrased), paraphrased.statistics)
    reply = ask(pair, rewrite_request(messages, paraphrased.text.strip()), sampling, config)
    return add_cost(reply, paraphrased.statistics)
