"""The suites as tasks of inspect_ai, which ``inspect eval safedraft/SUITE`` and the matrix run."""

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
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import Score, Scorer, Target
from inspect_ai.solver import Generate, Solver, TaskState, solver

from safedraft.benchmark import machine
from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.attacks import LeftOut
from safedraft.evaluation.exact import correct
from safedraft.evaluation.judges import JUDGES
from safedraft.evaluation.provider import SafeDraftAPI, sampling
from safedraft.evaluation.report.read import FORMAT, LEFT_OUT
from safedraft.evaluation.suites import NEW_TOKENS, Suite, find_suite
from safedraft.models.progress import Report, silent
from safedraft.prompts.sources import Record, find_source
from safedraft.prompts.split import Split
from safedraft.text.chat import Message

if TYPE_CHECKING:
    from safedraft.pair import Pair


def suite_task(
    suite: Suite,
    source: str | Sequence[str] | None = None,
    judge: str | Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
    split: Split = "report",
) -> Task:
    """A suite, ready to be run on any pair and defense.

    Args:
        suite: what is asked and how.
        source: names or files (``find_source``) in place of the suite's own.
        judge: as ``NAME[:argument=value,…]`` of ``JUDGES``; the phrase judge when not given. Suites
            of tasks with one right answer have a judge of their own.
        max_new_tokens: the suite's, or 48, when not given.
        temperature: 0 is greedy.
        seed: of every sampled reply.
        split: which part of the source is asked.

    Raises:
        SafeDraftError: an unknown source or judge, a judge given twice, a source that cannot be
            used, or a temperature or seed out of its range.
    """
    records = suite_records(suite, source, split)
    length = max_new_tokens or suite.max_new_tokens or NEW_TOKENS
    judges = find_judges([judge] if isinstance(judge, str) else judge or ["phrases"])
    config = GenerateConfig(
        max_tokens=length,
        temperature=temperature,
        seed=seed,
        max_connections=1,
        batch=drawn(suite, temperature) or None,
    )
    sampling(config)  # refused before anything is loaded
    return Task(
        name=suite.name,
        dataset=MemoryDataset([_sample(suite, record) for record in records], name=suite.name),
        solver=[attacked(suite.name), answered()],
        scorer=[_unless_left_out(correct())] if suite.kind == "accuracy" else judges,
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


def drawn(suite: Suite, temperature: float) -> bool:
    """Whether the target's own replies are drawn many at a time.

    On a processor that is several times as fast. Speed is measured on ordinary prompts alone, and
    an adaptive attack takes longer to make than to answer.
    """
    return suite.kind != "ordinary" and suite.family != "adaptive" and temperature == 0


def suite_records(
    suite: Suite,
    source: str | Sequence[str] | None = None,
    split: Split = "report",
    report: Report = silent,
) -> list[Record]:
    """One part of a suite's sources, in their fixed order.

    Raises:
        SafeDraftError: a source cannot be used, or lacks the answers that the suite needs.
    """
    names = [source] if isinstance(source, str) else source or [suite.source]
    records = [r for name in names for r in find_source(name).records(split, report)]
    if suite.kind == "accuracy":
        for record in records:
            if record.answer is None:
                raise SafeDraftError(
                    f"{record.source}: {suite.name} needs right answers, and the field for the "
                    "answer is missing (answer=NAME)"
                )
    unique = {record.id: record for record in records}
    return list(unique.values())


def _sample(suite: Suite, record: Record) -> Sample:
    known = {"request": record.request, "source": record.source, "category": record.category}
    return Sample(
        id=record.id,
        input=record.request + suite.instruction,
        target=record.answer or "" if suite.kind == "accuracy" else "",
        metadata={
            "record": known,
            "prefill": "",
            "given": {"answer": record.answer, "prompt": record.prompt},
        },
    )


@solver
def attacked(suite: str) -> Solver:
    """Makes the attack of a suite from a sample's record, when it is the sample's turn."""
    made_by = find_suite(suite)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        record = Record(**state.metadata["record"], **state.metadata.pop("given"))
        api = get_model().api
        if not isinstance(api, SafeDraftAPI):
            raise SafeDraftError(f"suites of safedraft run on models safedraft/PAIR, not {api}")

        try:
            messages = await api.use(lambda pair: sent(made_by, record, pair))
        except LeftOut as reason:
            state.metadata[LEFT_OUT] = str(reason)
            state.completed = True
            return state
        state.messages = [_chat_message(message) for message in messages]
        if messages[-1]["role"] == "assistant":
            state.metadata["prefill"] = messages[-1]["content"]
        return state

    return solve


@solver
def answered() -> Solver:
    """The defense's answer to what the attack made."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        return await generate(state)

    return solve


def sent(suite: Suite, record: Record, pair: Pair) -> list[Message]:
    """What a suite asks of a defense with this record.

    Raises:
        LeftOut: its attack cannot be made from it.
        SafeDraftError: what the attack needs is out of reach.
    """
    return [
        message
        if message["role"] == "assistant"
        else {**message, "content": message["content"] + suite.instruction}
        for message in suite.attack(record, pair)
    ]


def _chat_message(message: Message) -> ChatMessage:
    kind = ChatMessageAssistant if message["role"] == "assistant" else ChatMessageUser
    return kind(content=message["content"])


def find_judges(specs: Sequence[str]) -> list[Scorer]:
    """The judges of a sample. Scores go by a judge's name, so that one can be had only once.

    Raises:
        SafeDraftError: as ``find_judge``; or one is given twice.
    """
    names = [spec.partition(":")[0] for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise SafeDraftError(f"the judge {name} is given twice: its scores would be mixed")
    return [find_judge(spec) for spec in specs]


def find_judge(spec: str) -> Scorer:
    """A judge by ``NAME[:argument=value,…]``; samples that were left out stay unscored.

    Raises:
        SafeDraftError: there is none of that name, or it takes other arguments.
    """
    name, _, rest = spec.partition(":")
    if name not in JUDGES:
        raise SafeDraftError(f"no judge is called {name!r}; known are {', '.join(JUDGES)}")
    return _unless_left_out(JUDGES[name](**arguments(spec, rest)))


def arguments(spec: str, text: str) -> dict[str, Any]:
    """``name=value,…`` as a mapping; numbers, true and false are read as such.

    Raises:
        SafeDraftError: it is written otherwise.
    """
    found: dict[str, Any] = {}
    for part in text.split(",") if text else ():
        name, equals, value = part.partition("=")
        if not (name.isidentifier() and equals):
            raise SafeDraftError(f"{spec}: {part!r} is not NAME=VALUE")
        found[name] = parsed(value)
    return found


def parsed(text: str) -> Any:
    """A value as it is written on a command line: true, false, a number, or text."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _unless_left_out(judge: Scorer) -> Scorer:
    """``judge``, under its own name, which gives no number to a sample that was never asked."""

    @wraps(judge)
    async def score(state: TaskState, target: Target) -> Score | None:
        if LEFT_OUT in state.metadata:
            return Score.unscored(reason=LEFT_OUT, explanation=state.metadata[LEFT_OUT])
        return await judge(state, target)

    return score
