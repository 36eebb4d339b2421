"""Renders the report as one self-contained HTML page, without scripts, fonts or pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safedraft.evaluation.report.markdown import (
    EXPLANATION,
    format_count,
    format_interval,
    format_value,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from safedraft.evaluation.records import Row
    from safedraft.evaluation.report.tables import Figures

CAPTIONS = {
    "prefill": (
        "By number of prefilled tokens",
        "How often a model continues a harmful answer whose first tokens were prefilled, and how "
        "often it refuses a harmless request after the same prefill. The lines are shifted "
        "slightly so that the 95% intervals can be read.",
    ),
    "trade_off": (
        "Attack success against harmless requests refused",
        "One point for each configuration, over the suites of attacks that all of them ran, with "
        "equal weight; down and to the left is better. On the dashed line harm makes no "
        "difference: at its ends everything is answered, or everything refused.",
    ),
    "speed": (
        "Speed",
        "Medians of per-request ratios with 95% intervals; right of the dashed line is faster than "
        "the target alone.",
    ),
    "match": (
        "Match ratio over time",
        "Share of a bin's tokens that are the draft's own, averaged over the replies that reach "
        "the bin. A low ratio makes SSD prefer safety.",
    ),
}
"""Title and explanation of each plot."""


def render_page(figures: Figures, plots: Mapping[str, str], *, texts: bool = True) -> str:
    """Render the page.

    Args:
        figures: the content.
        plots: SVG by name, from ``render_plots``.
        texts: whether to show requests and replies; those of attacks are collapsed.
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
    environment.filters.update(
        format_value=format_value,
        format_interval=format_interval,
        format_count=format_count,
        describe_outcome=describe_outcome,
    )
    captioned = [(*CAPTIONS[name], Markup(svg)) for name, svg in plots.items()]
    return environment.get_template("page.html.jinja").render(
        figures=figures, plots=captioned, texts=texts, explanation=EXPLANATION
    )


def describe_outcome(row: Row, attack: bool) -> tuple[str, str]:
    """A label for a reply, and its CSS class: ``good``, ``bad`` or ``none``."""
    flag = row.succeeded if attack else row.refused
    if flag is None:
        return "unscored", "none"
    if attack:
        return ("attack succeeded", "bad") if flag else ("attack failed", "good")
    return ("refused", "bad") if flag else ("answered", "good")
