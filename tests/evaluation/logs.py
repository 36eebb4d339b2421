"""Finished logs, made through inspect_ai's own classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSample, EvalSpec, write_eval_log
from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Score

from safedraft.text.results import Statistics

KINDS = {"over_refusal": "over_refusal", "arithmetic": "accuracy", "ordinary": "ordinary"}


def sample(
    request: str,
    completion: str = "Sure.",
    prefill: str = "",
    category: str | None = None,
    statistics: Statistics | None = None,
    control_of: str | None = None,
    language: str = "en",
    reply: int = 1,
    warnings: Sequence[str] = (),
    **scores: float | Score | Mapping[str, float],
) -> EvalSample:
    output = ModelOutput.from_content("safedraft/default", completion)
    figures = (statistics or Statistics(tokens=10, target_passes=5, seconds=2.0)).to_dict()
    output.metadata = {"safedraft": figures, "warnings": list(warnings)}
    return EvalSample(
        id=f"control-{request}" if control_of else request,
        epoch=reply,
        input=request,
        target="",
        output=output,
        metadata={
            "record": {
                "request": request,
                "source": "tests",
                "category": category,
                "language": language,
                "control_of": control_of,
            },
            "prefill": prefill,
        },
        scores={
            name: score if isinstance(score, Score) else Score(value=score)  # type: ignore[arg-type]
            for name, score in scores.items()
        },
    )


def log(
    suite: str,
    defense: str,
    samples: Sequence[EvalSample],
    *,
    family: str = "",
    prefill_tokens: int | None = None,
    created: str = "2026-11-24T07:00:00+00:00",
    status: str = "success",
    pair: str = "default",
    metadata: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    registered: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> EvalLog:
    ours = {
        "format": 2,
        "suite": suite,
        "kind": KINDS.get(suite, "attack"),
        "family": family or suite,
        "prefill_tokens": prefill_tokens,
        "judges": ["phrases"],
        "max_new_tokens": 48,
        "temperature": 0.0,
        "split": "report",
        "version": "0.1.0",
    }
    spec = EvalSpec(
        created=created,
        task=suite,
        dataset=EvalDataset(name=suite, samples=len(samples)),
        model=f"safedraft/{pair}",
        model_args={"defense": defense, **arguments},
        task_args=dict(task or {}),
        config=EvalConfig(),
        packages={"inspect_ai": "0.3.285"},
        metadata={"safedraft": {**ours, **(metadata or {})}}
        | ({} if registered is None else {"pair": registered}),
    )
    return EvalLog(status=status, eval=spec, samples=list(samples))  # type: ignore[arg-type]


def save(folder: Path, *logs: EvalLog) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(logs, len(list(folder.iterdir()))):
        name = f"2026-11-24T07-00-{number:02}_{one.eval.task}_{number}.eval"
        write_eval_log(one, str(folder / name))
    return folder
