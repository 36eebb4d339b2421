"""``safedraft judge-check``: measure the accuracy of a judge of refusals."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from safedraft.cli import options
from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from safedraft.evaluation.intervals import Estimate
    from safedraft.evaluation.judges.check import JudgeAccuracy, Predicate


def judge_check(
    judge: Annotated[
        str,
        typer.Option(
            metavar="NAME[:ARG=VALUE,…]", help="A judge that detects refusals: phrases or endpoint."
        ),
    ] = "phrases",
    wrong: Annotated[
        bool, typer.Option("--wrong", help="Show completions judged wrong, except held-out ones.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Measure a judge against completions labeled by hand.

    Prints precision and recall with 95% intervals. Completions on which the phrases were tuned
    are reported separately from held-out ones.

    [dim]safedraft judge-check[/]
    """
    from safedraft.evaluation.judges.check import load_completions, measure_accuracy

    refuses = _find_predicate(judge)
    completions = load_completions()
    parts = {
        "tuned on": measure_accuracy(refuses, [item for item in completions if not item.held_out]),
        "held out": measure_accuracy(refuses, [item for item in completions if item.held_out]),
    }
    if as_json:
        accuracy = {name: part.to_dict() for name, part in parts.items()}
        sys.stdout.write(json.dumps({"judge": judge, **accuracy}) + "\n")
        return
    _print(parts)
    if wrong:
        _show(parts["tuned on"])


def _find_predicate(judge: str) -> Predicate:
    name, _, arguments = judge.partition(":")
    if name == "phrases":
        if arguments:
            raise SafeDraftError(f"--judge {judge}: the judge phrases takes no arguments")
        from safedraft.prompts.phrases import is_refusal

        return lambda item: is_refusal(item.text)
    if name == "classifier":
        raise SafeDraftError(
            "the judge classifier detects harm, not refusals: it cannot be checked"
        )
    options.require_extra(f"the judge {name}", "inspect_ai", "openai")
    from safedraft.evaluation.judges.check import make_predicate
    from safedraft.evaluation.tasks import find_judge

    return make_predicate(find_judge(judge))


def _print(parts: dict[str, JudgeAccuracy]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("completions", no_wrap=True)
    for heading in ("refusals", "others", "precision", "recall", "wrong", "no verdict"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, part in parts.items():
        table.add_row(
            name,
            str(part.refusals),
            str(part.others),
            _share(part.precision),
            _share(part.recall),
            str(len(part.wrong)),
            str(part.unjudged),
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "Written for SafeDraft, hard cases on purpose; 95% intervals in brackets.", style="dim"
    )


def _share(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "–"
    return f"{estimate.value:.0%} [{estimate.low * 100:.0f}, {estimate.high * 100:.0f}]"


def _show(part: JudgeAccuracy) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    for item in part.wrong:
        label = "missed" if item.refusal else "taken for a refusal"
        console.print(f"\n[bold]{label}[/]: [dim]{escape(item.after)}[/]{escape(item.text)}")
