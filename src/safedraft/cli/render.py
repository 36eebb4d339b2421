"""Replies in a terminal; the color of a token shows its origin."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from safedraft.text.results import GenerationResult, Token

MATCHED, INTERSECTION, UNION = "green", "bold yellow", "bold magenta"
_BARS = "▁▂▃▄▅▆▇█"
_CONTROL = dict.fromkeys(code for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t")


def strip_control_characters(text: str) -> str:
    """Remove control characters, with which a model could control the terminal."""
    return text.translate(_CONTROL)


def choose_style(token: Token) -> str:
    """Choose green for the draft's own tokens, yellow and magenta for corrections by scheme."""
    if token.scheme is None:
        return ""
    if token.matched:
        return MATCHED
    return UNION if token.scheme == "union" else INTERSECTION


def make_legend() -> Text:
    """Explain the colors."""
    return Text.assemble(
        ("■", MATCHED),
        " the draft's token, accepted   ",
        ("■", INTERSECTION),
        " corrected in intersection (utility)   ",
        ("■", UNION),
        " corrected in union (safety)",
    )


def color_tokens(tokens: Sequence[Token], *, folded: bool = False) -> Text:
    """Join the tokens' texts in color; ``folded`` covers every letter."""
    text = Text()
    for token in tokens:
        words = strip_control_characters(token.text)
        if folded:
            words = "".join(letter if letter.isspace() else "░" for letter in words)
        text.append(words, choose_style(token))
    return text


def print_token(token: Token, console: Console) -> None:
    """Print a token: in color on a terminal, as plain text elsewhere."""
    if console.is_terminal:
        console.print(Text(strip_control_characters(token.text), choose_style(token)), end="")
    elif not console.quiet:
        console.file.write(token.text)
    console.file.flush()


def format_bins(ratios: Sequence[float]) -> Text:
    """Format the match ratios of the bins as bars and numbers."""
    if not ratios:
        return Text("no full bin", "dim")
    bars = "".join(_BARS[round(ratio * (len(_BARS) - 1))] for ratio in ratios)
    figures = " ".join(f"{ratio:.2f}" for ratio in ratios)
    return Text.assemble((bars, MATCHED), (f"  {figures}", "dim"))


def format_summary(reply: GenerationResult) -> Text:
    """Format the statistics of a reply in one line."""
    figures = reply.statistics
    parts = [f"{figures.tokens} tokens", f"{figures.tokens_per_second:.1f} tokens/s"]
    if figures.draft_passes:
        parts.append(f"match ratio {figures.match_ratio:.2f}")
        parts.append(f"{figures.tokens_per_target_pass:.2f} tokens/target pass")
    if figures.risk is not None:
        parts.append(f"risk {figures.risk:.2f}")
    if reply.finish_reason == "interrupted":
        parts.append("interrupted")
    if figures.seed is not None:
        parts.append(f"seed {figures.seed}")
    return Text(" · ".join(parts), "dim")


def make_panel(
    title: str, reply: GenerationResult, *, prefill: str = "", folded: bool = False
) -> RenderableType:
    """Make the panel of one method: colored text, bins and statistics."""
    parts: list[RenderableType] = [
        Text.assemble((prefill, "dim italic"), color_tokens(reply.trace, folded=folded))
    ]
    if reply.statistics.match_ratios:
        parts += [
            "",
            Text("match ratio per bin", "dim"),
            format_bins(reply.statistics.match_ratios),
        ]
    if reply.statistics.seconds:
        parts += ["", format_summary(reply)]
    return Panel(Group(*parts), title=title, title_align="left", border_style="dim")


def arrange_panels(panels: Sequence[RenderableType]) -> Table:
    """Arrange panels of equal width in one row."""
    table = Table.grid(expand=True, padding=(0, 1))
    for _ in panels:
        table.add_column(ratio=1)
    table.add_row(*panels)
    return table
