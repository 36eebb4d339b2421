"""The report as one HTML page that needs nothing from outside: no script, font or picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safedraft.evaluation.report.markdown import EXPLANATION, counted, interval, written

if TYPE_CHECKING:
    from collections.abc import Mapping

    from safedraft.evaluation.report.read import Row
    from safedraft.evaluation.report.tables import Figures

CAPTIONS = {
    "prefill": (
        "Attack success by the length of the prefilled beginning",
        "How often a model goes on with a harmful answer whose first tokens were put into its "
        "mouth. Lines stand a little apart so that the 95% intervals can be read.",
    ),
    "trade_off": (
        "Safety against usefulness",
        "One point a configuration; up and to the right is better. Every suite weighs the same.",
    ),
    "speed": (
        "Speed",
        "Medians of per-request ratios with 95% intervals; right of the dashed line is faster than "
        "the target alone.",
    ),
    "match": (
        "Match ratio over time",
        "Share of a bin's tokens that are the draft's own, averaged over the replies that reach "
        "the bin. A low ratio is what turns SSD towards safety.",
    ),
}
"""Title and explanation of each plot."""


def page(figures: Figures, plots: Mapping[str, str], *, texts: bool = True) -> str:
    """The page.

    Args:
        figures: what to show.
        plots: SVG by name, as ``all_plots`` gives it.
        texts: whether to show what was asked and said, folded away where it was under attack.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("safedraft.evaluation.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(written=written, interval=interval, counted=counted, verdict=verdict)
    shown = [(*CAPTIONS[name], Markup(svg)) for name, svg in plots.items()]
    return environment.get_template("page.html.jinja").render(
        figures=figures, plots=shown, texts=texts, explanation=EXPLANATION
    )


def verdict(row: Row, attack: bool) -> tuple[str, str]:
    """What is said of a reply, and how it is coloured: ``good``, ``bad`` or ``none``."""
    found = row.succeeded if attack else row.refused
    if found is None:
        return "unscored", "none"
    if attack:
        return ("gave in", "bad") if found else ("withstood", "good")
    return ("refused", "bad") if found else ("answered", "good")
