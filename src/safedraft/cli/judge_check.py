"""``safedraft judge-check``: how often a judge of refusals is right."""

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
            metavar="NAME[:ARG=VALUE,…]", help="A judge that tells refusals: phrases or endpoint."
        ),
    ] = "phrases",
    wrong: Annotated[
        bool, typer.Option("--wrong", help="Show what it got wrong, held-out ones excepted.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Measure a judge against completions labelled by hand.

    Prints precision and recall with 95% intervals. The completions that the phrases were tuned on
    stand apart from those they were not.

    [dim]safedraft judge-check[/]
    """
    from safedraft.evaluation.judges.check import load_completions, measure_accuracy

    refuses = _verdicts(judge)
    completions = load_completions()
    parts = {
        "tuned on": measure_accuracy(refuses, [one for one in completions if not one.held_out]),
        "held out": measure_accuracy(refuses, [one for one in completions if one.held_out]),
    }
    if as_json:
        found = {name: part.to_dict() for name, part in parts.items()}
        sys.stdout.write(json.dumps({"judge": judge, **found}) + "\n")
        return
    _print(parts)
    if wrong:
        _show(parts["tuned on"])


def _verdicts(judge: str) -> Predicate:
    name, _, arguments = judge.partition(":")
    if name == "phrases":
        if arguments:
            raise SafeDraftError(f"--judge {judge}: the judge phrases takes no arguments")
        from safedraft.prompts.phrases import is_refusal

        return lambda one: is_refusal(one.text)
    if name == "classifier":
        raise SafeDraftError("the judge classifier tells harm, not refusals: nothing to check")
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
    for one in part.wrong:
        label = "missed" if one.refusal else "taken for a refusal"
        console.print(f"\n[bold]{label}[/]: [dim]{escape(one.after)}[/]{escape(one.text)}")
