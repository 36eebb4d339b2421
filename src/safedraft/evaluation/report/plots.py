"""Draws the report's plots as SVG, which takes its colors and fonts from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safedraft.evaluation.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from safedraft.evaluation.report.tables import Figures, Point, Series, Table

# Colors for every kind of color vision, on light and dark pages (after Okabe and Ito, and Tol);
# the target alone is gray. Markers differ as well.
_COLORS = (
    *("#1a85c9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#9467bd", "#8c6d31"),
    *("#44aa99", "#b0457b", "#999933", "#cc6677"),
)
_BASELINE_COLOR = "#808080"
_MARKERS = "osD^vPX*hd"
_INK = "#0a0b0c"  # becomes the page's own text color
_WIDTH = 7.4  # inches, of every plot
_FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.7,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 6.5,
}


def render_plots(figures: Figures) -> dict[str, str]:
    """SVG by name, for the plots that have data."""
    styles = assign_styles(figures.columns, figures.baseline)
    plots: dict[str, str] = {}
    if figures.trade_off:
        plots["trade_off"] = _render(
            "trade_off", (_WIDTH, 4.4), _plot_trade_off, figures.trade_off, styles
        )
    if figures.by_prefill:
        plots["prefill"] = _render(
            "prefill", (_WIDTH, 4.0), _plot_prefill, figures.by_prefill, styles
        )
    speed = next((table for table in figures.tables if table.name == "speed"), None)
    if speed is not None:
        cells = [(row, c) for row in speed.rows for c in speed.columns if c != figures.baseline]
        bars = [cell for cell in cells if speed.cell(*cell).count]
        if bars:
            plots["speed"] = _render(
                "speed", (_WIDTH, 1.3 + 0.32 * len(bars)), _plot_speed, speed, bars, styles
            )
    if figures.match_ratios:
        plots["match"] = _render("match", (_WIDTH, 3.4), _plot_match, figures.match_ratios, styles)
    return plots


def assign_styles(columns: Sequence[str], baseline: str | None) -> dict[str, tuple[str, str]]:
    """Color and marker for every configuration, the same in all plots."""
    styles, others = {}, [column for column in columns if column != baseline]
    for index, column in enumerate(others):
        marker = _MARKERS[1:][index % (len(_MARKERS) - 1)]
        styles[column] = (_COLORS[index % len(_COLORS)], marker)
    return styles | ({baseline: (_BASELINE_COLOR, _MARKERS[0])} if baseline else {})


def _render(name: str, size: tuple[float, float], draw: Callable[..., None], *content: Any) -> str:
    """Render one plot as SVG, with unique ids and without external resources."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, *content)
        file = io.StringIO()
        figure.savefig(
            file,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", _FONT, svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return re.sub(r'<svg ([^>]*)width="[^"]*"', r"<svg \1", svg, count=1)


def _error_bars(values: Sequence[Estimate]) -> list[list[float]]:
    """Lengths of the intervals below and above the values; 0 if there is no interval."""
    middle = [value.value or 0.0 for value in values]
    low = [m if v.low is None else v.low for m, v in zip(middle, values, strict=True)]
    high = [m if v.high is None else v.high for m, v in zip(middle, values, strict=True)]
    return [
        [max(m - edge, 0.0) for m, edge in zip(middle, low, strict=True)],
        [max(edge - m, 0.0) for m, edge in zip(middle, high, strict=True)],
    ]


def _plot_prefill(
    figure: Any,
    curves: Mapping[str, Sequence[Series]],
    styles: Mapping[str, tuple[str, str]],
) -> None:
    from matplotlib.ticker import PercentFormatter

    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (measure, series) in zip(panels, curves.items(), strict=True):
        _draw_prefill_curves(axes, series, styles)
        axes.set_title(measure, fontsize=11)
        axes.set_xlabel("prefilled tokens")
    panels[0].set_ylim(-0.03, 1.03)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    _draw_legend(figure)


def _draw_prefill_curves(
    axes: Axes, series: Sequence[Series], styles: Mapping[str, tuple[str, str]]
) -> None:
    lengths = sorted({at for curve in series for at in curve.at})
    width = (lengths[-1] - lengths[0]) / max(90, 22 * len(series))
    for index, curve in enumerate(series):
        color, marker = styles[curve.name]
        shift = (index - (len(series) - 1) / 2) * width  # so that intervals do not cover each other
        axes.errorbar(
            [at + shift for at in curve.at],
            [value.value or 0.0 for value in curve.values],
            yerr=_error_bars(curve.values),
            color=color,
            marker=marker,
            label=curve.name,
            elinewidth=1.2,
            capsize=0,
        )
    axes.set_xticks(lengths, [f"{length:g}" for length in lengths])


def _plot_trade_off(
    figure: Any, points: Sequence[Point], styles: Mapping[str, tuple[str, str]]
) -> None:
    from matplotlib.ticker import PercentFormatter

    axes: Axes = figure.subplots()
    axes.plot([0, 1], [1, 0], color=_INK, linewidth=1.0, linestyle=(0, (4, 3)), alpha=0.6)
    for text, at, align in (
        ("answers everything", (0.0, 1.0), "left"),
        ("refuses everything", (1.0, 0.0), "right"),
    ):
        offset = (9 if align == "left" else -9, 5)
        axes.annotate(
            text, at, xytext=offset, textcoords="offset points", ha=align, alpha=0.7, fontsize=9.5
        )
    for point in points:
        color, marker = styles[point.name]
        axes.errorbar(
            [point.harmless_refused.value or 0.0],
            [point.success.value or 0.0],
            xerr=_error_bars([point.harmless_refused]),
            yerr=_error_bars([point.success]),
            color=color,
            marker=marker,
            markersize=9,
            linestyle="none",
            elinewidth=1.2,
            alpha=0.9,
            label=point.name,
        )
    axes.set_xlabel("harmless requests refused under the same attacks")
    axes.set_ylabel("attack success")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.08)
    _draw_legend(figure)


def _plot_speed(
    figure: Any,
    table: Table,
    bars: Sequence[tuple[str, str]],
    styles: Mapping[str, tuple[str, str]],
) -> None:
    axes: Axes = figure.subplots()
    ticks = []
    for index, (row, column) in enumerate(bars):
        speed = table.cell(row, column)
        at = index + 0.6 * table.rows.index(row)  # a gap between the groups
        value = speed.value or 0.0
        axes.barh(
            at,
            value,
            0.72,
            color=styles[column][0],
            alpha=0.85 if row == table.rows[0] else 0.5,
            xerr=_error_bars([speed]),
            error_kw={"ecolor": _INK, "elinewidth": 1.2},
        )
        axes.annotate(
            f"{value:.2f}×",
            (value if speed.high is None else max(speed.high, value), at),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
        ticks.append((at, f"{column} · {row}"))
    axes.axvline(1.0, color=_INK, linewidth=1.0, linestyle=(0, (4, 3)), alpha=0.6)
    axes.set_yticks([tick for tick, _ in ticks], [label for _, label in ticks])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens per second, relative to the target alone")


def _plot_match(
    figure: Any, groups: Mapping[str, Sequence[Series]], styles: Mapping[str, tuple[str, str]]
) -> None:
    from matplotlib.ticker import MaxNLocator

    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, (group, series) in zip(panels, groups.items(), strict=True):
        for curve in series:
            color, marker = styles[curve.name]
            middle = [value.value or 0.0 for value in curve.values]
            below, above = _error_bars(curve.values)
            axes.plot(curve.at, middle, color=color, marker=marker, label=curve.name, markersize=5)
            axes.fill_between(
                curve.at,
                [m - b for m, b in zip(middle, below, strict=True)],
                [m + a for m, a in zip(middle, above, strict=True)],
                color=color,
                alpha=0.13,
                linewidth=0,
            )
        axes.set_title(group, fontsize=11)
        axes.set_xlabel("bin of the reply")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("match ratio")
    panels[0].set_ylim(-0.03, 1.03)
    _draw_legend(figure)


def _draw_legend(figure: Any) -> None:
    """Draw a legend above the plot, each configuration once, in rows from left to right."""
    handles_by_name: dict[str, Any] = {}
    for axes in figure.axes:
        handles, names = axes.get_legend_handles_labels()
        handles_by_name |= dict(zip(names, handles, strict=True))
    longest = max(map(len, handles_by_name), default=1)
    columns = max(1, min(len(handles_by_name), int(_WIDTH * 72 / (6.4 * longest + 36))))
    by_column = [name for start in range(columns) for name in list(handles_by_name)[start::columns]]
    figure.legend(
        [handles_by_name[name] for name in by_column],
        by_column,
        loc="outside upper left",
        ncols=columns,
        handlelength=1.4,
        columnspacing=1.2,
    )
