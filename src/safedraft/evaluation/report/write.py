"""Writes the three files of a report."""

from __future__ import annotations

import json
from pathlib import Path

from safedraft.core.files import write_atomically
from safedraft.evaluation.report.html import render_page
from safedraft.evaluation.report.markdown import render_markdown
from safedraft.evaluation.report.plots import render_plots
from safedraft.evaluation.report.tables import Figures


def write_report(figures: Figures, folder: Path, *, texts: bool = True) -> list[Path]:
    """Write ``report.html``, ``report.md`` and ``report.json`` into a folder.

    Args:
        figures: the content.
        folder: created if it is missing.
        texts: whether the page shows the replies to a few requests side by side.

    Returns:
        The paths of the three files, in this order.
    """
    files = {
        "report.html": render_page(figures, render_plots(figures), texts=texts),
        "report.md": render_markdown(figures),
        "report.json": json.dumps(figures.to_dict(), indent=1, ensure_ascii=False) + "\n",
    }
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in files]
