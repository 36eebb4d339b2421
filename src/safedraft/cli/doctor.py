"""``safedraft doctor``: can two models decode together?"""

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
    draft: Annotated[str, typer.Argument(help="Likewise.")],
    as_json: options.Json = False,
) -> None:
    """Say whether two models can decode together, and why not.

    Reads configurations and tokenizers, no weights. Loading a pair runs the same checks. Exits
    with 1 if the two do not fit.

    [dim]safedraft doctor qwen2.5-coder-1.5b-instruct qwen2.5-coder-0.5b-instruct[/]
    """
    from rich.console import Console
    from rich.markup import escape

    from safedraft.models.doctor import examine, read_anatomy
    from safedraft.models.fetch import fetch_anatomy
    from safedraft.models.progress import show_progress

    with show_progress() as report:
        folders = [fetch_anatomy(model, report) for model in (target, draft)]
    examination = examine(read_anatomy(folders[0], target), read_anatomy(folders[1], draft))
    if as_json:
        sys.stdout.write(json.dumps(examination.to_dict(), indent=1, ensure_ascii=False) + "\n")
    else:
        console = Console(highlight=False, soft_wrap=True)
        for finding in examination.findings:
            detail = escape(finding.detail)
            console.print(f"{_MARKS[finding.status]} [bold]{finding.check}[/]: {detail}")
        verdict = "can" if examination.compatible else "cannot"
        console.print(f"\n{escape(target)} and {escape(draft)} {verdict} decode together.")
    if not examination.compatible:
        raise typer.Exit(1)
