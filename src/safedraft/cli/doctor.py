"""``safedraft doctor``: check whether two models can decode together."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from safedraft.cli import options
from safedraft.cli.models import ENGINE, ModelChoice, choose_models

if TYPE_CHECKING:
    from safedraft.models.compatibility import CompatibilityReport

_MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "failure": "[bold red]✗[/]"}


@choose_models("target", "draft", *ENGINE, "settings")
def doctor(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A registered model, a folder, a GGUF file, or a hub id owner/name\\[@revision]."
        ),
    ] = None,
    draft: Annotated[str | None, typer.Argument(help="The draft, named in the same ways.")] = None,
    as_json: options.Json = False,
    *,
    models: ModelChoice,
) -> None:
    """Check whether two models can decode together, explain what prevents it, and what to run next.

    The command reads configurations and tokenizers, but loads no weights. Loading a pair runs the
    same checks. Without models it checks the pair. The exit code is 1 if they are incompatible.

    [dim]safedraft doctor qwen2.5-coder-1.5b-instruct qwen2.5-coder-0.5b-instruct[/]
    """
    from rich.console import Console
    from rich.markup import escape

    from safedraft.models.doctor import examine
    from safedraft.models.progress import show_progress

    models = replace(models, target=target, draft=draft)
    with show_progress() as report:
        found = examine(models.spec, report)
    if as_json:
        sys.stdout.write(json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n")
    else:
        console = Console(highlight=False, soft_wrap=True)
        for check in found.checks:
            console.print(f"{_MARKS[check.status]} [bold]{check.name}[/]: {escape(check.detail)}")
        verdict = "can" if found.compatible else "cannot"
        console.print(
            f"\n{escape(found.target)} and {escape(found.draft)} {verdict} decode together."
        )
        console.print(_next_step(found, models), markup=False)
    if not found.compatible:
        raise typer.Exit(1)


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
