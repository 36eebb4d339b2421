"""Solvers of inspect_ai: build the conversation of a sample, and let the defense answer it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentReasoning,
    ContentText,
    ModelOutput,
    get_model,
)
from inspect_ai.solver import Generate, Solver, TaskState, solver

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.attacks import ATTACKS, Attack, SkipSampleError
from safedraft.evaluation.attacks.base import begin_thinking
from safedraft.evaluation.provider import SafeDraftAPI
from safedraft.evaluation.records import LEFT_OUT, NOT_KEPT
from safedraft.evaluation.suites import Suite, find_suite
from safedraft.prompts.sources import Record
from safedraft.text.messages import Message, begun_text
from safedraft.text.results import Statistics, join_statistics

if TYPE_CHECKING:
    from safedraft.pair import Pair

_SEEDS_PER_CALL = 1 << 16
"""Distance of the seeds of two calls for one reply, above any number of replies to a request."""


@solver(name="attacked")  # the name that logs have
def attack_defense(suite: str) -> Solver:
    """Build the conversation of each sample by the attack of a suite."""
    chosen_suite = find_suite(suite)
    attack = ATTACKS.find(chosen_suite.attack)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        record = Record(**state.metadata["record"], **state.metadata.pop("given"))
        api = get_model().api
        if not isinstance(api, SafeDraftAPI):
            raise SafeDraftError(f"suites of safedraft run on models safedraft/PAIR, not {api}")

        try:
            messages = await api.use(
                lambda pair: build_conversation(chosen_suite, attack, record, pair)
            )
        except SkipSampleError as error:
            state.metadata[LEFT_OUT] = str(error)
            state.completed = True
            return state
        state.messages = [_to_chat_message(message) for message in messages]
        if begun := begun_text(messages):
            state.metadata["prefill"] = begun
        return state

    return solve


@solver(name="answered")  # the name that logs have
def answer(suite: str, max_new_tokens: int, seed: int | None = None) -> Solver:
    """Let the defense answer the conversation, at once or in the calls of ``tokens_per_call``.

    Args:
        suite: name of the suite.
        max_new_tokens: maximum tokens of the whole reply.
        seed: seed of the first reply to a request; the n-th one has the seed ``seed + n - 1``.
    """
    at_once = find_suite(suite).tokens_per_call or max_new_tokens

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        own_seed = None if seed is None else seed + state.epoch - 1
        begun = list(state.messages)
        outputs: list[ModelOutput] = []
        for left in range(max_new_tokens, 0, -at_once):
            state.messages = _begin_with(begun, "".join(one.completion for one in outputs))
            call_seed = None if own_seed is None else own_seed + len(outputs) * _SEEDS_PER_CALL
            state = await generate(state, max_tokens=min(at_once, left), seed=call_seed)
            outputs.append(state.output)
            if state.output.stop_reason != "max_tokens":
                break
        state.output = join_outputs(outputs)
        if any((output.metadata or {}).get(NOT_KEPT) for output in outputs):
            state.metadata[LEFT_OUT] = (
                "the reply mentions minors and anything sexual: it is not kept"
            )
        if is_unfinished_reasoning(state):
            state.metadata[LEFT_OUT] = (
                "the reply ended inside its reasoning, so there is no answer to judge: give more "
                "--max-new-tokens"
            )
        return state

    return solve


def _begin_with(messages: Sequence[ChatMessage], said: str) -> list[ChatMessage]:
    """The conversation with ``said`` appended to the assistant's turn that it ends in."""
    if not said:
        return list(messages)
    *earlier, last = messages
    if isinstance(last, ChatMessageAssistant):
        return [*earlier, ChatMessageAssistant(content=last.text + said)]
    return [*messages, ChatMessageAssistant(content=said)]


def join_outputs(outputs: Sequence[ModelOutput]) -> ModelOutput:
    """One reply of the pieces that a client asked for in turn; costs are added up."""
    if len(outputs) == 1:
        return outputs[0]
    joined = outputs[-1].model_copy(deep=True)
    joined.completion = "".join(output.completion for output in outputs)
    costs = [Statistics.from_dict((output.metadata or {})["safedraft"]) for output in outputs]
    joined.metadata = {"safedraft": join_statistics(costs).to_dict()}
    return joined


def is_unfinished_reasoning(state: TaskState) -> bool:
    """Whether a reply has reasoning and no answer after it."""
    if not state.output.choices or state.output.completion:
        return False
    content = state.output.message.content
    return not isinstance(content, str) and any(part.type == "reasoning" for part in content)


def build_conversation(suite: Suite, attack: Attack, record: Record, pair: Pair) -> list[Message]:
    """Build the conversation that a suite sends to a defense, its instruction included.

    A pair that thinks begins every reply with reasoning, so that what an attack begins is the
    reasoning.

    Raises:
        SkipSampleError: the attack cannot be built from this record, or has no control.
        SafeDraftError: something the attack needs is missing.
    """
    if suite.kind == "attack" and record.prompt and record.request not in record.prompt:
        raise SkipSampleError(
            "the source's attack does not contain its request, so that it has no control"
        )
    messages = [
        message
        if message["role"] != "user"
        else {**message, "content": message["content"] + suite.instruction}
        for message in attack(record, pair)
    ]
    if record.system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": record.system})
    return begin_thinking(messages, pair)


def _to_chat_message(message: Message) -> ChatMessage:
    if message["role"] == "system":
        return ChatMessageSystem(content=message["content"])
    if message["role"] == "user":
        return ChatMessageUser(content=message["content"])
    if "reasoning" not in message:
        return ChatMessageAssistant(content=message["content"])
    reasoning = ContentReasoning(reasoning=message["reasoning"])
    return ChatMessageAssistant(content=[reasoning, ContentText(text=message["content"])])
