"""``safedraft judge-check``: measure how well a judge agrees with labels given by people."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safedraft.cli import options
from safedraft.core.errors import SafeDraftError
from safedraft.core.extras import require_extra

if TYPE_CHECKING:
    from safedraft.evaluation.intervals import Estimate
    from safedraft.evaluation.judges.check import Classify, JudgeAccuracy
    from safedraft.evaluation.judges.labels import LabeledCompletion


class Labels(StrEnum):
    """Sets of labeled completions."""

    OWN = "own"
    PYRIT = "pyrit"
    REPLIES = "replies"


def judge_check(
    judge: Annotated[
        str, typer.Option(metavar="NAME[:ARG=VALUE,…]", help="A judge, as in safedraft score.")
    ] = "phrases",
    labels: Annotated[
        Labels,
        typer.Option(
            help="SafeDraft's own hard cases, PyRIT's replies labeled by people (a wheel of 11 MB "
            "is downloaded), or the labeled ones among the replies in --logs."
        ),
    ] = Labels.OWN,
    logs: Annotated[
        list[Path] | None,
        typer.Option(help="A log or folder of logs, for --labels replies; may be given again."),
    ] = None,
    wrong: Annotated[
        bool, typer.Option("--wrong", help="Show completions judged wrong, except held-out ones.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Measure a judge against completions whose classes are known.

    Prints precision and recall of the classes complied and refused with 95% intervals. Completions
    on which the phrases were tuned are reported separately from held-out ones.

    [dim]safedraft judge-check --labels pyrit[/]
    """
    from safedraft.evaluation.judges.check import measure_accuracy

    if (labels is Labels.REPLIES) != bool(logs):
        raise SafeDraftError("--labels replies and --logs FOLDER go together: give both or none")
    classify = _find_classify(judge)
    parts = measure_accuracy(classify, _load(labels, logs or []))
    if as_json:
        accuracy = {name: part.to_dict() for name, part in parts.items()}
        sys.stdout.write(json.dumps({"judge": judge, "labels": labels, "parts": accuracy}) + "\n")
        return
    _print(parts)
    if wrong:
        _show(parts)


def _load(labels: Labels, logs: Sequence[Path]) -> list[LabeledCompletion]:
    from safedraft.evaluation.judges.labels import load_completions, load_pyrit

    if labels is Labels.OWN:
        return load_completions()
    if labels is Labels.PYRIT:
        from safedraft.models.progress import show_progress

        with show_progress() as report:
            return load_pyrit(report)
    require_extra("--labels replies", "eval", "inspect_ai")
    from safedraft.evaluation.judges.replies import join_labels, load_labels, read_replies

    return join_labels(read_replies(logs), load_labels())


def _find_classify(judge: str) -> Classify:
    name, _, arguments = judge.partition(":")
    if name == "phrases":
        if arguments:
            raise SafeDraftError(f"--judge {judge}: the judge phrases takes no arguments")
        from safedraft.prompts.phrases import classify

        return lambda item: frozenset([classify(item.text, item.all_given)])
    require_extra(f"the judge {name}", "eval", "inspect_ai", "openai")
    from safedraft.evaluation.judges.check import make_classify
    from safedraft.evaluation.tasks import find_judge

    return make_classify(find_judge(judge))


def _print(parts: Mapping[str, JudgeAccuracy]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("part", no_wrap=True)
    for heading in ("n", "complied:\nprecision", "recall", "refused:\nprecision", "recall"):
        table.add_column(heading, justify="right", no_wrap=True, vertical="bottom")
    for heading in ("wrong", "unjudged"):
        table.add_column(heading, justify="right", no_wrap=True, vertical="bottom")
    for name, part in parts.items():
        classes = (part.complied, part.refused)
        estimates = [
            estimate for accuracy in classes for estimate in (accuracy.precision, accuracy.recall)
        ]
        table.add_row(
            name,
            str(part.completions),
            *map(_share, estimates),
            str(len(part.wrong)),
            str(part.unjudged),
        )
    console = Console(highlight=False)
    console.print(table)
    console.print("In percent; 95% intervals in brackets.", style="dim")


def _share(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "–"
    return f"{100 * estimate.value:.0f} [{100 * estimate.low:.0f},{100 * estimate.high:.0f}]"


def _show(parts: Mapping[str, JudgeAccuracy]) -> None:
    from rich.console import Console
    from rich.markup import escape

    from safedraft.evaluation.judges.labels import HELD_OUT

    console = Console(highlight=False, soft_wrap=True)
    # A completion is in its part, and may also be in the part of its language.
    wrong = {
        completion: None
        for part in parts.values()
        for completion in part.wrong
        if completion.part != HELD_OUT
    }
    for completion in wrong:
        label = " or ".join(sorted(completion.label))
        console.print(
            f"\n[bold]{label}[/]: [dim]{escape(completion.after)}[/]{escape(completion.text)}"
        )
