"""``safedraft doctor``: check whether two models can decode together."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from safedraft.cli import options

_MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "failure": "[bold red]✗[/]"}


def doctor(
    target: Annotated[
        str,
        typer.Argument(help="A registered model, a folder, or a hub id owner/name\\[@revision]."),
    ],
    draft: Annotated[str, typer.Argument(help="The draft, named in the same ways.")],
    as_json: options.Json = False,
) -> None:
    """Check whether two models can decode together, and explain what prevents it.

    The command reads configurations and tokenizers, but no weights. Loading a pair runs the same
    checks. The exit code is 1 if the models are incompatible.

    [dim]safedraft doctor qwen2.5-coder-1.5b-instruct qwen2.5-coder-0.5b-instruct[/]
    """
    from rich.console import Console
    from rich.markup import escape

    from safedraft.models.compatibility import check_compatibility
    from safedraft.models.description import read_description
    from safedraft.models.fetch import fetch_description
    from safedraft.models.progress import show_progress

    with show_progress() as report:
        folders = [fetch_description(model, report) for model in (target, draft)]
    compatibility = check_compatibility(
        read_description(folders[0], target), read_description(folders[1], draft)
    )
    if as_json:
        sys.stdout.write(json.dumps(compatibility.to_dict(), indent=1, ensure_ascii=False) + "\n")
    else:
        console = Console(highlight=False, soft_wrap=True)
        for check in compatibility.checks:
            detail = escape(check.detail)
            console.print(f"{_MARKS[check.status]} [bold]{check.name}[/]: {detail}")
        verdict = "can" if compatibility.compatible else "cannot"
        console.print(f"\n{escape(target)} and {escape(draft)} {verdict} decode together.")
    if not compatibility.compatible:
        raise typer.Exit(1)
