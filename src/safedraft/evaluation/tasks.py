"""Suites as tasks of inspect_ai, for ``inspect eval safedraft/SUITE`` and the matrix."""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageUser,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import Score, Scorer, Target
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import registry_info

from safedraft.core.assignments import parse_assignments, parse_value
from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.attacks import ATTACKS, Attack, SkipSampleError
from safedraft.evaluation.attacks.base import begin_thinking
from safedraft.evaluation.benchmark import machine
from safedraft.evaluation.exact import correct
from safedraft.evaluation.judges import make_judge
from safedraft.evaluation.provider import SafeDraftAPI, to_sampling_params
from safedraft.evaluation.records import FORMAT, LEFT_OUT
from safedraft.evaluation.suites import NEW_TOKENS, Suite, find_suite
from safedraft.models.progress import ReportProgress, silent
from safedraft.prompts.sources import Record, find_source
from safedraft.prompts.split import Split
from safedraft.text.messages import Message, begun_text

if TYPE_CHECKING:
    from safedraft.pair import Pair


def build_task(
    suite: Suite,
    source: str | Sequence[str] | None = None,
    judge: str | Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
    split: Split = "report",
) -> Task:
    """Build the task of a suite, for any pair and defense.

    Args:
        suite: the attack, its kind and its source.
        source: names or files (``find_source``) to use instead of the suite's own source.
        judge: judges as ``NAME[:argument=value,…]``, by default the phrase judge. Suites of tasks
            with one right answer ignore it and compare the answers.
        max_new_tokens: maximum tokens of a reply, by default the suite's number, or else 48.
        temperature: 0 is greedy.
        seed: seed of every sampled reply.
        split: which part of the source to use.

    Raises:
        SafeDraftError: the source, judge or attack does not exist or cannot be used, two judges
            give the same score, or the temperature or seed is out of range.
    """
    records = read_records(suite, source, split)
    length = max_new_tokens or suite.max_new_tokens or NEW_TOKENS
    judges = find_judges([judge] if isinstance(judge, str) else judge or ["phrases"])
    config = GenerateConfig(
        max_tokens=length,
        temperature=temperature,
        seed=seed,
        max_connections=1,
        batch=uses_batches(suite, temperature) or None,
    )
    to_sampling_params(config)  # refuses bad values before anything is loaded
    return Task(
        name=suite.name,
        dataset=MemoryDataset(
            [_build_sample(suite, record) for record in records], name=suite.name
        ),
        solver=[attack_defense(suite.name), answer()],
        scorer=[_skip_left_out(correct())] if suite.kind == "accuracy" else judges,
        config=config,
        metadata={
            "safedraft": {
                "format": FORMAT,
                "suite": suite.name,
                "kind": suite.kind,
                "family": suite.family,
                "prefill_tokens": suite.prefill_tokens,
                "split": split,
                "version": version("safedraft"),
                "machine": machine(),
            }
        },
    )


def uses_batches(suite: Suite, temperature: float) -> bool:
    """Whether replies are generated together: on the engine cpu those of several samples, and with
    Transformers the target's own ones, before the task runs.

    On a CPU, batches are several times as fast. Ordinary prompts are excluded because speed is
    measured on them, and adaptive attacks because building one takes longer than answering it.
    """
    return suite.kind != "ordinary" and suite.family != "adaptive" and temperature == 0


def read_records(
    suite: Suite,
    source: str | Sequence[str] | None = None,
    split: Split = "report",
    report: ReportProgress = silent,
) -> list[Record]:
    """Read one split of a suite's sources, in a fixed order and without duplicates.

    Raises:
        SafeDraftError: a source cannot be used, or lacks the answers that the suite needs.
    """
    names = [source] if isinstance(source, str) else source or [suite.source]
    records = [r for name in names for r in find_source(name).require_split(split, report)]
    if suite.kind == "accuracy":
        for record in records:
            if record.answer is None:
                raise SafeDraftError(
                    f"{record.source}: {suite.name} needs right answers, and the field for the "
                    "answer is missing (answer=NAME)"
                )
    unique = {record.id: record for record in records}
    return list(unique.values())


def _build_sample(suite: Suite, record: Record) -> Sample:
    fields = {"request": record.request, "source": record.source, "category": record.category}
    return Sample(
        id=record.id,
        input=record.request + suite.instruction,
        target=record.answer or "" if suite.kind == "accuracy" else "",
        metadata={
            "record": fields,
            "prefill": "",
            "given": {"answer": record.answer, "prompt": record.prompt},
        },
    )


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
def answer() -> Solver:
    """Let the defense answer the conversation."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        state = await generate(state)
        if is_unfinished_reasoning(state):
            state.metadata[LEFT_OUT] = (
                "the reply ended inside its reasoning, so there is no answer to judge: give more "
                "--max-new-tokens"
            )
        return state

    return solve


def is_unfinished_reasoning(state: TaskState) -> bool:
    """Whether a reply has reasoning and no answer behind it."""
    if not state.output.choices or state.output.completion:
        return False
    content = state.output.message.content
    return not isinstance(content, str) and any(part.type == "reasoning" for part in content)


def build_conversation(suite: Suite, attack: Attack, record: Record, pair: Pair) -> list[Message]:
    """Build the conversation that a suite sends to a defense, its instruction included.

    A pair that thinks begins every reply with reasoning, so that what an attack begins is the
    reasoning.

    Raises:
        SkipSampleError: the attack cannot be built from this record.
        SafeDraftError: something the attack needs is missing.
    """
    messages = [
        message
        if message["role"] == "assistant"
        else {**message, "content": message["content"] + suite.instruction}
        for message in attack(record, pair)
    ]
    return begin_thinking(messages, pair)


def _to_chat_message(message: Message) -> ChatMessage:
    if message["role"] != "assistant":
        return ChatMessageUser(content=message["content"])
    if "reasoning" not in message:
        return ChatMessageAssistant(content=message["content"])
    reasoning = ContentReasoning(reasoning=message["reasoning"])
    return ChatMessageAssistant(content=[reasoning, ContentText(text=message["content"])])


def find_judges(specs: Sequence[str]) -> list[Scorer]:
    """Make the judges of a task.

    Raises:
        SafeDraftError: as ``find_judge``; or two judges give the same score.
    """
    names = [spec.partition(":")[0] for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise SafeDraftError(f"the judge {name} is given twice: its scores would be mixed")
    judges = [find_judge(spec) for spec in specs]
    scores: dict[str, str] = {}
    for name, judge in zip(names, judges, strict=True):
        score = registry_info(judge).name.rpartition("/")[2]
        if score in scores:
            raise SafeDraftError(
                f"the judges {scores[score]} and {name} both give the score {score!r}: choose one"
            )
        scores[score] = name
    return judges


def find_judge(spec: str) -> Scorer:
    """Make a judge from ``NAME[:argument=value,…]``; it leaves skipped samples unscored.

    Raises:
        SafeDraftError: there is none of that name, or it takes other arguments.
    """
    name, _, rest = spec.partition(":")
    return _skip_left_out(make_judge(name, parse_arguments(spec, rest)))


def parse_arguments(spec: str, text: str) -> dict[str, Any]:
    """Read ``name=value,…`` into a mapping; numbers, true and false are read as such.

    Raises:
        SafeDraftError: it is written otherwise.
    """
    arguments = parse_assignments(f"{spec}:", text)
    return {name: parse_value(value) for name, value in arguments.items()}


def _skip_left_out(judge: Scorer) -> Scorer:
    """Wrap a judge, under its own name, so that it leaves skipped samples unscored."""

    @wraps(judge)
    async def score(state: TaskState, target: Target) -> Score | None:
        if LEFT_OUT in state.metadata:
            return Score.unscored(reason=LEFT_OUT, explanation=state.metadata[LEFT_OUT])
        return await judge(state, target)

    return score
