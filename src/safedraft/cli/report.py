"""``safedraft report``: what finished logs show, as a page, as Markdown and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safedraft.errors import SafeDraftError


def report(
    logs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Logs of safedraft eval, or folders of them.", show_default="safedraft-logs"
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="The folder for report.html, report.md and report.json.")
    ] = Path("report"),
    texts: Annotated[
        bool,
        typer.Option(
            "--texts/--no-texts",
            help="Show a few outcomes side by side; under attack they are folded away.",
        ),
    ] = True,
) -> None:
    """Make a report of finished evaluations.

    One self-contained HTML page, and the same figures as Markdown and JSON: attack success,
    refusal of harmless prompts, accuracy, speed, each with its count and 95% interval. No model is
    loaded.

    [dim]safedraft report logs[/]
    """
    import json

    from rich.console import Console
    from rich.markup import escape

    try:
        import inspect_ai  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise SafeDraftError(
            f"safedraft report needs {error.name}: pip install 'safedraft[eval]'"
        ) from error

    from safedraft.evaluation.report.figures import all_figures
    from safedraft.evaluation.report.html import page
    from safedraft.evaluation.report.markdown import markdown
    from safedraft.evaluation.report.plots import all_plots
    from safedraft.evaluation.report.read import read_logs

    figures = all_figures(read_logs(logs or [Path("safedraft-logs")]))
    files = {
        "report.html": page(figures, all_plots(figures), texts=texts),
        "report.md": markdown(figures),
        "report.json": json.dumps(figures.to_dict(), indent=1, ensure_ascii=False) + "\n",
    }
    output.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(figures.headline)}[/] {escape(' '.join(figures.besides))}\n")
    for note in figures.notes:
        console.print(escape(note), style="dim")
    for name, content in files.items():
        (output / name).write_text(content, encoding="utf-8")
        console.print(f"[green]{escape(str(output / name))}[/]")
