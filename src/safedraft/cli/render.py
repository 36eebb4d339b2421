"""Replies in a terminal; the color of a token shows its origin."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from safedraft.core.counts import format_count
from safedraft.text.results import GenerationResult, Token

MATCHED = "green"
CORRECTED = {"intersection": "bold yellow", "union": "bold magenta"}
"""Styles of tokens that the draft did not propose, by the scheme that corrected them."""

_NARROW = 60
"""Width below which panels stand under each other."""

_BARS = " ▁▂▃▄▅▆▇█"
_ROWS = 4
"""Height of the bars in lines."""

_LINES = "▁─▔"
"""A threshold in the lower, the middle and the upper third of a line."""

_CONTROL = dict.fromkeys(code for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t")


_ENDS = {"length": "cut at its limit of tokens", "interrupted": "stopped"}
"""Words for a reply that did not reach its end."""


def strip_control_characters(text: str) -> str:
    """Remove control characters, with which a model could control the terminal."""
    return text.translate(_CONTROL)


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Make a console that wraps words on a terminal, and leaves lines whole elsewhere.

    FORCE_COLOR colors what goes to a file, and does not make a terminal of it.
    """
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr,
        quiet=quiet,
        highlight=False,
        soft_wrap=not terminal,
        force_terminal=terminal,
        color_system="standard" if os.environ.get("FORCE_COLOR") and not terminal else "auto",
    )


def choose_style(token: Token) -> str:
    """Choose the style of a token by its origin."""
    if token.scheme is None:
        return ""
    return MATCHED if token.matched else CORRECTED[token.scheme]


def make_legend() -> Columns:
    """Explain the colors."""
    meanings = {
        MATCHED: "the draft's token, accepted",
        CORRECTED["intersection"]: "corrected in intersection (utility)",
        CORRECTED["union"]: "corrected in union (safety)",
    }
    entries = [Text.assemble(("■", style), f" {meaning}") for style, meaning in meanings.items()]
    return Columns(entries, padding=(0, 3))


def color_tokens(tokens: Sequence[Token], *, folded: bool = False) -> Text:
    """Join the tokens' texts in color; ``folded`` covers every letter."""
    text = Text()
    for token in tokens:
        words = strip_control_characters(token.text)
        if folded:
            words = "".join(letter if letter.isspace() else "░" for letter in words)
        text.append(words, choose_style(token))
    return text


@dataclass(frozen=True)
class BinChart:
    """A bar for the match ratio of each full bin, and a line at its threshold.

    The color and the letter of a bar say in which scheme the bin was decided.
    """

    trace: Sequence[Token]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw as many bins as there is room for in each row of bars."""
        bins = [token for token in self.trace if token.match_ratio is not None]
        if not bins:
            yield Text("match ratio per bin: no full bin", "dim")
            return
        yield Text("match ratio per bin (i: intersection, u: union, ─: threshold)", "dim")
        room = max((options.max_width - 2) // 2, 1)
        for start in range(0, len(bins), room):
            yield from _draw_bins(bins[start : start + room])


def _draw_bins(bins: Sequence[Token]) -> list[Text]:
    """Draw bins that fit into one row of bars, from the top line to the letters."""
    lines = []
    for row in reversed(range(_ROWS)):
        scale = {_ROWS - 1: "1 ", 0: "0 "}.get(row, "  ")
        cells = [cell for bin in bins for cell in (_draw_bar(bin, row), _draw_line(bin, row))]
        lines.append(Text.assemble((scale, "dim"), *cells))
    letters = [((bin.scheme or " ")[0].ljust(2), _style_of(bin)) for bin in bins]
    return [*lines, Text.assemble("  ", *letters)]


def _draw_bar(bin: Token, row: int) -> tuple[str, str]:
    """The part of a bar in a row, from 0 at the bottom; a ratio of 0 has a bar as well."""
    eighths = max(round((bin.match_ratio or 0) * _ROWS * 8), 1)
    return _BARS[min(max(eighths - 8 * row, 0), 8)], _style_of(bin)


def _draw_line(bin: Token, row: int) -> tuple[str, str]:
    """The threshold after a bar, in the row that it lies in."""
    if bin.threshold is None:
        return " ", ""
    third = min(int(bin.threshold * _ROWS * 3), _ROWS * 3 - 1)
    return _LINES[third % 3] if third // 3 == row else " ", "dim"


def _style_of(bin: Token) -> str:
    return CORRECTED.get(bin.scheme or "", "")


def format_summary(reply: GenerationResult, *, ended: bool = True) -> Text:
    """Format the statistics of a reply in one line; before it has ended, without how it ended."""
    figures = reply.statistics
    parts = [format_count(figures.tokens, "token"), f"{figures.tokens_per_second:.1f} tokens/s"]
    if figures.draft_passes:
        parts.append(f"match ratio {figures.match_ratio:.2f}")
        parts.append(f"{figures.tokens_per_target_pass:.2f} tokens/pass")
    if figures.risk is not None:
        parts.append(f"risk {figures.risk:.2f}")
    if ended and reply.finish_reason in _ENDS:
        parts.append(_ENDS[reply.finish_reason])
    if figures.seed is not None:
        parts.append(f"seed {figures.seed}")
    return Text(" · ".join(parts), "dim")


def make_panel(
    title: str,
    verdict: str,
    reply: GenerationResult,
    *,
    prefill: str = "",
    folded: bool = False,
    ended: bool = True,
) -> RenderableType:
    """Make the panel of one method: verdict, colored text, bins and statistics."""
    parts: list[RenderableType] = [
        Text(verdict, "bold"),
        "",
        Text.assemble((prefill, "dim italic"), color_tokens(reply.trace, folded=folded)),
    ]
    if reply.statistics.match_ratios:
        parts += ["", BinChart(reply.trace)]
    if reply.statistics.seconds:
        parts += ["", format_summary(reply, ended=ended)]
    return Panel(Group(*parts), title=title, title_align="left", border_style="dim")


def arrange_panels(panels: Sequence[RenderableType], width: int) -> RenderableType:
    """Arrange panels side by side, or under each other if there is little room."""
    if width < _NARROW:
        return Group(*panels)
    table = Table.grid(expand=True, padding=(0, 1))
    for _ in panels:
        table.add_column(ratio=1)
    table.add_row(*panels)
    return table
