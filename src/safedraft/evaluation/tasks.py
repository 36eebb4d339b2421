"""Suites as tasks of inspect_ai, for ``inspect eval safedraft/SUITE`` and the matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import wraps
from importlib.metadata import version
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Score, Scorer, Target
from inspect_ai.solver import TaskState
from inspect_ai.util import registry_info

from safedraft.core.assignments import parse_value, split_assignments
from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.benchmark import machine
from safedraft.evaluation.controls import read_records
from safedraft.evaluation.judges import make_judge
from safedraft.evaluation.provider import FORM, to_sampling_params
from safedraft.evaluation.records import FORMAT, LEFT_OUT
from safedraft.evaluation.solving import answer, attack_defense
from safedraft.evaluation.suites import NEW_TOKENS, Suite
from safedraft.evaluation.usefulness import CHECKS
from safedraft.prompts.sources import Record
from safedraft.prompts.split import Split


def build_task(
    suite: Suite,
    source: str | Sequence[str] | None = None,
    control: str | Sequence[str] | None = None,
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
        control: names or files to use instead of the suite's own harmless requests, to which its
            attack is applied as well.
        judge: judges as ``NAME[:argument=value,…]``, by default the phrase judge. Suites of tasks
            with one right answer ignore it and compare the answers.
        max_new_tokens: maximum tokens of a reply, by default the suite's number, or else 48.
        temperature: 0 is greedy.
        seed: seed of the first sampled reply to a request; further ones have the next seeds.
        split: which part of the sources to use.

    Raises:
        SafeDraftError: the source, judge or attack does not exist or cannot be used, two judges
            give the same score, or the temperature or seed is out of range.
    """
    records = read_records(suite, source, control, split)
    length = max_new_tokens or suite.max_new_tokens or NEW_TOKENS
    judge_names = [judge] if isinstance(judge, str) else list(judge or ["phrases"])
    judges = find_judges(judge_names)
    config = GenerateConfig(
        max_tokens=length,
        temperature=temperature,
        seed=seed,
        max_connections=1,
        batch=uses_batches(suite, temperature) or None,
        extra_body={FORM: suite.reply_form} if suite.reply_form else None,
    )
    to_sampling_params(config)  # refuses bad values before anything is loaded
    return Task(
        name=suite.name,
        dataset=MemoryDataset(
            [_build_sample(suite, record) for record in records], name=suite.name
        ),
        solver=[attack_defense(suite.name), answer(suite.name, length, seed)],
        scorer=[_skip_left_out(CHECKS[suite.check]())] if suite.kind == "accuracy" else judges,
        config=config,
        metadata={
            "safedraft": {
                "format": FORMAT,
                "suite": suite.name,
                "kind": suite.kind,
                "family": suite.family,
                "prefill_tokens": suite.prefill_tokens,
                "judges": [] if suite.kind == "accuracy" else judge_names,
                "max_new_tokens": length,
                "temperature": temperature,
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


def _build_sample(suite: Suite, record: Record) -> Sample:
    kept = ("request", "source", "category", "language", "system", "control_of")
    fields = asdict(record)
    return Sample(
        id=record.id,
        input=record.request + suite.instruction,
        target=record.answer or "" if suite.kind == "accuracy" else "",
        metadata={
            "record": {name: fields[name] for name in kept},
            "prefill": "",
            "given": {name: value for name, value in fields.items() if name not in kept},
        },
    )


def is_control(metadata: Mapping[str, Any] | None) -> bool:
    """Whether a sample with this metadata is the control of another one."""
    return (metadata or {})["record"]["control_of"] is not None


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
        SafeDraftError: no judge has this name, or it does not take these arguments.
    """
    name, _, rest = spec.partition(":")
    return _skip_left_out(make_judge(name, parse_arguments(spec, rest)))


def parse_arguments(spec: str, text: str) -> dict[str, Any]:
    """Read ``name=value,…`` into a mapping; numbers, true and false are read as such.

    Raises:
        SafeDraftError: the text does not have this form.
    """
    arguments = split_assignments(f"{spec}:", text)
    return {name: parse_value(value) for name, value in arguments.items()}


def _skip_left_out(judge: Scorer) -> Scorer:
    """Wrap a judge, under its own name, so that it leaves skipped samples unscored."""

    @wraps(judge)
    async def score(state: TaskState, target: Target) -> Score | None:
        if LEFT_OUT in state.metadata:
            return Score.unscored(reason=LEFT_OUT, explanation=state.metadata[LEFT_OUT])
        return await judge(state, target)

    return score
