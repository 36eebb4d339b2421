"""``safedraft report``: report finished logs as HTML, Markdown and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safedraft.core.errors import SafeDraftError
from safedraft.core.extras import require_extra

_LOGS = Path("safedraft-logs")
"""The folder in which ``safedraft eval`` writes."""


def report(
    logs: Annotated[
        list[Path] | None,
        typer.Argument(help="Logs of safedraft eval, or folders of them.", show_default=str(_LOGS)),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="The folder for report.html, report.md and report.json.")
    ] = Path("report"),
    texts: Annotated[
        bool,
        typer.Option(
            "--texts/--no-texts",
            help="Show some replies side by side; replies to attacks are collapsed.",
        ),
    ] = True,
) -> None:
    """Make a report of finished evaluations.

    The report is a self-contained HTML page, and the same figures as Markdown and JSON: attack
    success, refusal of harmless prompts, accuracy and speed, each with its count and 95% interval.
    No model is loaded.

    [dim]safedraft report safedraft-logs[/]
    """
    from rich.markup import escape

    from safedraft.cli.render import make_console

    require_extra("safedraft report", "eval", "inspect_ai", "matplotlib")
    from safedraft.evaluation.logs import read_logs
    from safedraft.evaluation.report.figures import build_figures
    from safedraft.evaluation.report.write import write_report

    if not logs and not _LOGS.exists():
        raise SafeDraftError(
            f"there is no folder {_LOGS} here: run `safedraft eval` first, or name a folder of logs"
        )
    figures = build_figures(read_logs(logs or [_LOGS]))
    console = make_console()
    console.print(*(escape(sentence) for sentence in (figures.headline, *figures.further_findings)))
    console.print()
    for warning in figures.warnings:
        console.print(f"[yellow]warning: {escape(warning)}[/]")
    for note in figures.notes:
        console.print(escape(note), style="dim")
    for file in write_report(figures, output, texts=texts):
        console.print(f"[green]{escape(str(file))}[/]", soft_wrap=True)
