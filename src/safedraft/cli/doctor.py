"""``safedraft doctor``: check whether two models can decode together."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from safedraft.cli import options
from safedraft.cli.models import ENGINE, PAIR_ARGUMENT, ModelChoice, choose_models
from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from safedraft.models.check import Check
    from safedraft.models.compatibility import CompatibilityReport
    from safedraft.models.proposals import Proposals

_MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "failure": "[bold red]✗[/]"}


@choose_models(PAIR_ARGUMENT, "target", "draft", *ENGINE, "settings")
def doctor(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A registered model, a folder, a GGUF file, or a hub id owner/name\\[@revision]. "
            "Without a draft, drafts are proposed. A pair is named with --pair."
        ),
    ] = None,
    draft: Annotated[str | None, typer.Argument(help="The draft, named in the same ways.")] = None,
    as_json: options.Json = False,
    *,
    models: ModelChoice,
) -> None:
    """Check whether two models can decode together, explain what prevents it, and what to run next.

    The command reads configurations and tokenizers, but loads no weights; a registered model that
    is not in the cache is fetched completely. Loading a pair runs the same checks. With a target
    alone it proposes drafts; without models it checks the pair of --pair, or the default pair. The
    exit code is 1 if the two are incompatible, or if no draft is known.

    [dim]safedraft doctor Qwen/Qwen3-8B[/]

    [dim]safedraft doctor qwen2.5-coder-1.5b-instruct qwen2.5-coder-0.5b-instruct[/]
    """
    from rich.console import Console

    from safedraft.models.doctor import examine
    from safedraft.models.progress import show_progress

    models = replace(models, target=target, draft=draft)
    if target and not draft and not models.pair:
        _propose(target, models, as_json)
        return
    with show_progress() as report:
        found = examine(models.spec, report)
    if as_json:
        sys.stdout.write(json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n")
    else:
        console = Console(highlight=False, soft_wrap=True)
        print_checks(found.checks, console)
        verdict = "can" if found.compatible else "cannot"
        together = f"\n{found.target} and {found.draft} {verdict} decode together."
        console.print(together, markup=False)
        console.print(_next_step(found, models), markup=False)
    if not found.compatible:
        raise typer.Exit(1)


def print_checks(checks: Sequence[Check], console: Console) -> None:
    """Print one line for each check."""
    from rich.markup import escape

    for check in checks:
        console.print(f"{_MARKS[check.status]} [bold]{check.name}[/]: {escape(check.detail)}")


def _propose(target: str, models: ModelChoice, as_json: bool) -> None:
    """Print drafts for a target, each with the command that compares the two.

    Raises:
        SafeDraftError: an option is about a draft that is not named.
    """
    from rich.console import Console

    from safedraft.models.progress import show_progress
    from safedraft.models.proposals import propose_drafts

    if about_draft := replace(models, target=None).words:
        raise SafeDraftError(
            f"{about_draft[0]} is about a pair: name a draft after {target}, or leave the option "
            "out to see which drafts there are"
        )
    with show_progress() as report:
        found = propose_drafts(target, report)
    if as_json:
        sys.stdout.write(json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n")
    else:
        console = Console(highlight=False, soft_wrap=True)
        for problem in found.problems:
            console.print(f"{_MARKS['failure']} ", end="")
            console.print(problem, markup=False)
        for draft in found.drafts:
            command = shlex.join(["safedraft", "doctor", *draft.words])
            console.print(f"{draft.draft}: {draft.reason}\n  Next: {command}", markup=False)
        if not found.drafts:
            console.print(f"\n{_explain_none(found)}", markup=False)
    if not found.drafts:
        raise typer.Exit(1)


def _explain_none(found: Proposals) -> str:
    if found.problems:
        return f"No draft can guard {found.target}: docs/guard-your-model.md names other models."
    return (
        f"SafeDraft knows no small model with the tokenizer of {found.target}. Any causal language "
        "model that has it, and at most half of its weights, can be tried: "
        f"{shlex.join(['safedraft', 'doctor', found.target, 'DRAFT'])}"
    )


def _next_step(found: CompatibilityReport, models: ModelChoice) -> str:
    """What to do after the checks: repair, train a draft, or decode."""
    if not found.compatible:
        broken = ", ".join(check.name for check in found.checks if check.status == "failure")
        return (
            f"Next: repair what is marked ✗ ({broken}), or choose another draft of the same family."
        )
    command = ["generate", *models.words, "--compare", "A request that it should refuse"]
    if not models.spec.adapter and not models.spec.bare_draft:
        command = ["train-draft", *models.words, "--output", "my-draft"]
        if added := [word for check in found.checks for word in check.options]:
            command = ["doctor", *models.words, *added]  # no draft is trained before that
    return f"Next: {shlex.join(['safedraft', *command])}"
