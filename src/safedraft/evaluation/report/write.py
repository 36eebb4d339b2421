"""The three files of a report."""

from __future__ import annotations

import json
from pathlib import Path

from safedraft.evaluation.report.html import page
from safedraft.evaluation.report.markdown import markdown
from safedraft.evaluation.report.plots import all_plots
from safedraft.evaluation.report.tables import Figures


def write_report(figures: Figures, folder: Path, *, texts: bool = True) -> list[Path]:
    """Write ``report.html``, ``report.md`` and ``report.json`` into a folder.

    Args:
        figures: what they show.
        folder: made where it is missing.
        texts: whether the page shows a few outcomes side by side.
    """
    files = {
        "report.html": page(figures, all_plots(figures), texts=texts),
        "report.md": markdown(figures),
        "report.json": json.dumps(figures.to_dict(), indent=1, ensure_ascii=False) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in files]
