"""The report's plots, as SVG that is put into the page and takes its colours and letters."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safedraft.evaluation.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from safedraft.evaluation.report.tables import Figures, Point, Series, Table

# Colours that people with any colour vision tell apart, on light and dark pages (after Okabe and
# Ito, and Tol); the target alone is grey. Markers differ as well.
_COLOURS = (
    *("#1a85c9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#9467bd", "#8c6d31"),
    *("#44aa99", "#b0457b", "#999933", "#cc6677"),
)
_ALONE = "#808080"
_MARKERS = "osD^vPX*hd"
_INK = "#0a0b0c"  # becomes the page's own text colour
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


def all_plots(figures: Figures) -> dict[str, str]:
    """SVG by name, of the plots that there is something to draw in."""
    look = looks(figures.columns, figures.baseline)
    plots: dict[str, str] = {}
    if figures.by_prefill:
        plots["prefill"] = _drawn("prefill", (_WIDTH, 4.0), _prefill, figures.by_prefill, look)
    if len(figures.trade_off) > 1:
        plots["trade_off"] = _drawn("trade_off", (_WIDTH, 4.4), _trade_off, figures.trade_off, look)
    speed = next((table for table in figures.tables if table.name == "speed"), None)
    if speed is not None:
        cells = [(row, c) for row in speed.rows for c in speed.columns if c != figures.baseline]
        bars = [cell for cell in cells if speed.cell(*cell).count]
        if bars:
            plots["speed"] = _drawn(
                "speed", (_WIDTH, 1.3 + 0.32 * len(bars)), _speed, speed, bars, look
            )
    if figures.match_ratios:
        plots["match"] = _drawn("match", (_WIDTH, 3.4), _match, figures.match_ratios, look)
    return plots


def looks(columns: Sequence[str], baseline: str | None) -> dict[str, tuple[str, str]]:
    """Colour and marker of every configuration, the same in all plots."""
    found, others = {}, [column for column in columns if column != baseline]
    for index, column in enumerate(others):
        marker = _MARKERS[1:][index % (len(_MARKERS) - 1)]
        found[column] = (_COLOURS[index % len(_COLOURS)], marker)
    return found | ({baseline: (_ALONE, _MARKERS[0])} if baseline else {})


def _drawn(name: str, size: tuple[float, float], draw: Callable[..., None], *content: Any) -> str:
    """The SVG of one plot, with ids of its own and nothing from outside the page."""
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
    """How far the intervals reach below and above; not at all where there is none."""
    middle = [value.value or 0.0 for value in values]
    low = [m if v.low is None else v.low for m, v in zip(middle, values, strict=True)]
    high = [m if v.high is None else v.high for m, v in zip(middle, values, strict=True)]
    return [
        [max(m - edge, 0.0) for m, edge in zip(middle, low, strict=True)],
        [max(edge - m, 0.0) for m, edge in zip(middle, high, strict=True)],
    ]


def _prefill(figure: Any, series: Sequence[Series], look: Mapping[str, tuple[str, str]]) -> None:
    from matplotlib.ticker import PercentFormatter

    axes: Axes = figure.subplots()
    lengths = sorted({at for one in series for at in one.at})
    width = (lengths[-1] - lengths[0]) / max(90, 22 * len(series))
    for index, one in enumerate(series):
        colour, marker = look[one.name]
        shift = (index - (len(series) - 1) / 2) * width  # so that intervals stand side by side
        axes.errorbar(
            [at + shift for at in one.at],
            [value.value or 0.0 for value in one.values],
            yerr=_error_bars(one.values),
            color=colour,
            marker=marker,
            label=one.name,
            elinewidth=1.2,
            capsize=0,
        )
    axes.set_xticks(lengths, [f"{length:g}" for length in lengths])
    axes.set_xlabel("tokens of a compliant answer that were prefilled")
    axes.set_ylabel("attack success")
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _legend(figure)


def _trade_off(figure: Any, points: Sequence[Point], look: Mapping[str, tuple[str, str]]) -> None:
    from matplotlib.ticker import PercentFormatter

    axes: Axes = figure.subplots()
    for point in points:
        colour, marker = look[point.name]
        axes.errorbar(
            [1 - (point.success.value or 0.0)],
            [point.usefulness.value or 0.0],
            xerr=_error_bars([point.success])[::-1],
            yerr=_error_bars([point.usefulness]),
            color=colour,
            marker=marker,
            markersize=9,
            linestyle="none",
            elinewidth=1.2,
            alpha=0.9,
            label=point.name,
        )
    axes.set_xlabel("safety: attacks withstood →")
    axes.set_ylabel("usefulness: harmless prompts answered →")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(top=1.03)
    _legend(figure)


def _speed(
    figure: Any,
    table: Table,
    bars: Sequence[tuple[str, str]],
    look: Mapping[str, tuple[str, str]],
) -> None:
    axes: Axes = figure.subplots()
    ticks = []
    for index, (row, column) in enumerate(bars):
        found = table.cell(row, column)
        at = index + 0.6 * table.rows.index(row)  # a gap between the groups
        value = found.value or 0.0
        axes.barh(
            at,
            value,
            0.72,
            color=look[column][0],
            alpha=0.85 if row == table.rows[0] else 0.5,
            xerr=_error_bars([found]),
            error_kw={"ecolor": _INK, "elinewidth": 1.2},
        )
        axes.annotate(
            f"{value:.2f}×",
            (value if found.high is None else max(found.high, value), at),
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


def _match(
    figure: Any, groups: Mapping[str, Sequence[Series]], look: Mapping[str, tuple[str, str]]
) -> None:
    from matplotlib.ticker import MaxNLocator

    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, (group, series) in zip(panels, groups.items(), strict=True):
        for one in series:
            colour, marker = look[one.name]
            middle = [value.value or 0.0 for value in one.values]
            below, above = _error_bars(one.values)
            axes.plot(one.at, middle, color=colour, marker=marker, label=one.name, markersize=5)
            axes.fill_between(
                one.at,
                [m - b for m, b in zip(middle, below, strict=True)],
                [m + a for m, a in zip(middle, above, strict=True)],
                color=colour,
                alpha=0.13,
                linewidth=0,
            )
        axes.set_title(group, fontsize=11)
        axes.set_xlabel("bin of the reply")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("match ratio")
    panels[0].set_ylim(-0.03, 1.03)
    _legend(figure)


def _legend(figure: Any) -> None:
    """Above the plot, each configuration once, in rows from left to right."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        handles, names = axes.get_legend_handles_labels()
        found |= dict(zip(names, handles, strict=True))
    longest = max(map(len, found), default=1)
    columns = max(1, min(len(found), int(_WIDTH * 72 / (6.4 * longest + 36))))
    by_column = [name for start in range(columns) for name in list(found)[start::columns]]
    figure.legend(
        [found[name] for name in by_column],
        by_column,
        loc="outside upper left",
        ncols=columns,
        handlelength=1.4,
        columnspacing=1.2,
    )
