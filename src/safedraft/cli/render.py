"""How replies look in a terminal: tokens coloured by where they came from."""

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


def visible(text: str) -> str:
    """``text`` without the control characters by which a model could drive the terminal."""
    return text.translate(_CONTROL)


def style_of(token: Token) -> str:
    """Green for the draft's own, yellow and magenta for corrections in intersection and union."""
    if token.scheme is None:
        return ""
    if token.matched:
        return MATCHED
    return UNION if token.scheme == "union" else INTERSECTION


def legend() -> Text:
    """What the colours mean."""
    return Text.assemble(
        ("■", MATCHED),
        " the draft's token, accepted   ",
        ("■", INTERSECTION),
        " corrected in intersection (utility)   ",
        ("■", UNION),
        " corrected in union (safety)",
    )


def coloured(tokens: Sequence[Token], *, folded: bool = False) -> Text:
    """The tokens' text in their colours; folded, every letter is covered."""
    text = Text()
    for token in tokens:
        words = visible(token.text)
        if folded:
            words = "".join(letter if letter.isspace() else "░" for letter in words)
        text.append(words, style_of(token))
    return text


def tell(token: Token, console: Console) -> None:
    """Print a token as it comes: in colour on a terminal, to the letter anywhere else."""
    if console.is_terminal:
        console.print(Text(visible(token.text), style_of(token)), end="")
    elif not console.quiet:
        console.file.write(token.text)
    console.file.flush()


def bins(ratios: Sequence[float]) -> Text:
    """The match ratio of each bin as a bar, and their figures."""
    if not ratios:
        return Text("no full bin", "dim")
    bars = "".join(_BARS[round(ratio * (len(_BARS) - 1))] for ratio in ratios)
    figures = " ".join(f"{ratio:.2f}" for ratio in ratios)
    return Text.assemble((bars, MATCHED), (f"  {figures}", "dim"))


def summary(reply: GenerationResult) -> Text:
    """One line of figures."""
    figures = reply.statistics
    parts = [f"{figures.tokens} tokens", f"{figures.tokens_per_second:.1f} tokens/s"]
    if figures.draft_passes:
        parts.append(f"match ratio {figures.match_ratio:.2f}")
        parts.append(f"{figures.tokens_per_target_pass:.2f} tokens/target pass")
    if reply.finish_reason == "interrupted":
        parts.append("interrupted")
    if figures.seed is not None:
        parts.append(f"seed {figures.seed}")
    return Text(" · ".join(parts), "dim")


def panel(
    title: str, reply: GenerationResult, *, prefill: str = "", folded: bool = False
) -> RenderableType:
    """One method's reply: text in colour, bins, figures."""
    parts: list[RenderableType] = [
        Text.assemble((prefill, "dim italic"), coloured(reply.trace, folded=folded))
    ]
    if reply.statistics.match_ratios:
        parts += ["", Text("match ratio per bin", "dim"), bins(reply.statistics.match_ratios)]
    if reply.statistics.seconds:
        parts += ["", summary(reply)]
    return Panel(Group(*parts), title=title, title_align="left", border_style="dim")


def side_by_side(panels: Sequence[RenderableType]) -> Table:
    """Panels of equal width in one row."""
    table = Table.grid(expand=True, padding=(0, 1))
    for _ in panels:
        table.add_column(ratio=1)
    table.add_row(*panels)
    return table
