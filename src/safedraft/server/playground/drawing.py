"""Replies in HTML: colored tokens, the chart of the bins, and statistics; all text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from safedraft.core.config import Scheme
from safedraft.server.playground.bins import Bin
from safedraft.text.results import GenerationResult, Token

LEGEND = (
    ("matched", "matched", "the draft’s token, taken"),
    ("corrected intersection", "corrected", "in intersection, for usefulness"),
    ("corrected union", "corrected", "in union, for safety"),
)
"""CSS classes, sample and meaning of each kind of token; the kinds differ not only in color."""

_PLOT = 120  # the chart's height, in pixels
_FEWEST = 12  # minimum number of bins in the width, so that the first bars are not too wide
_NARROWEST = 8  # minimum width of a bin in pixels; wider charts scroll


def draw_legend() -> str:
    """Draw the legend of the tokens."""
    rows = "".join(
        f'<li><span class="token {look}">{sample}</span> {meaning}</li>'
        for look, sample, meaning in LEGEND
    )
    return f'<ul class="legend">{rows}</ul>'


def choose_classes(token: Token) -> str:
    """Choose the CSS classes of a token."""
    if token.scheme is None:
        kind = "alone"
    else:
        kind = "matched" if token.matched else f"corrected {token.scheme}"
    if not token.text:
        return f"token {kind} empty"
    return f"token {kind} break" if not token.text.strip("\r\n") else f"token {kind}"


def describe_token(token: Token) -> str:
    """Describe a token, with one fact per line."""
    if token.scheme is None:
        lines = ["the target’s own", f"target {_format_probability(token.target_probability)}"]
    else:
        kind = "matched" if token.matched else "corrected"
        lines = [
            f"{kind} in {token.scheme}",
            f"draft {_format_probability(token.draft_probability)}",
            f"target {_format_probability(token.target_probability)}",
            f"weight α {token.alpha:g}",
        ]
    if not token.text:
        lines.append("no text: the reply’s end, or a part of a character")
    return "\n".join([*lines, f"block {token.block}"])


def draw_token(token: Token) -> str:
    """Draw one token; the page's script shows ``data-details`` on hover."""
    classes, details = choose_classes(token), escape(describe_token(token))
    return f'<span class="{classes}" data-details="{details}">{escape(token.text)}</span>'


def draw_prefill(prefill: str) -> str:
    """Draw the prefilled beginning of the reply."""
    return f'<span class="begun" title="the prefill">{escape(prefill)}</span>' if prefill else ""


def draw_question(prompt: str) -> str:
    """Draw the user's message."""
    return f'<p class="question"><b>You</b> {escape(prompt)}</p>'


def draw_reply(drawn: str) -> str:
    """Draw the reply of an earlier turn."""
    return f'<div class="said">{drawn}</div>'


def draw_code(code: str) -> str:
    """Draw Python code with a button to copy it."""
    return f'<button type="button">Copy</button><pre tabindex="0">{escape(code)}</pre>'


def draw_problem(message: str) -> str:
    """Draw an error message, which screen readers announce."""
    return f'<span class="problem" role="alert">{escape(message)}</span>'


def draw_figures(reply: GenerationResult, state: str) -> str:
    """Draw the statistics of a reply; ``state`` is a phrase about its progress."""
    cost = reply.statistics
    parts = [f"<b>{cost.tokens_per_second:.1f}</b> tokens/s", f"{cost.tokens} tokens"]
    if any(token.scheme for token in reply.trace[:1]):
        parts.append(f"{cost.matches / max(cost.tokens, 1):.0%} matched")
        parts.append(f"{cost.tokens / max(cost.blocks, 1):.1f} tokens/target pass")
    if cost.risk is not None:
        parts.append(f"risk {cost.risk:.2f}")
    shown = parts if cost.tokens else []
    return f'<p class="figures">{" · ".join([*shown, escape(state)] if state else shown)}</p>'


def describe_last_bin(bins: Sequence[Bin]) -> str:
    """Describe the last full bin."""
    full = [item for item in bins if item.following]
    if not full:
        return "The first bin is not full yet." if bins else ""
    return f"Bin {len(full)}: {_describe_bin(full[-1])}."


def draw_chart(bins: Sequence[Bin], bin_size: int) -> str:
    """Draw match ratios as bars and thresholds as lines, in an SVG of the available width."""
    places = max(len(bins), _FEWEST)
    bars = "".join(_draw_bar(number, item, places) for number, item in enumerate(bins))
    grid = "".join(
        f'<line class="grid" x1="0" x2="100%" y1="{_to_pixels(at)}" y2="{_to_pixels(at)}"/>'
        for at in (0, 0.5, 1)
    )
    return (
        '<div class="plot"><div class="axis" aria-hidden="true"><span>1</span><span>½</span>'
        '<span>0</span></div><div class="bars">'
        f'<svg role="img" aria-label="{escape(describe_chart(bins, bin_size))}" width="100%" '
        f'height="{_PLOT}" style="min-width:{places * _NARROWEST}px">'
        '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect width="6" height="6" class="ground"/>'
        '<rect width="2.5" height="6" class="stroke"/></pattern></defs>'
        f"{grid}{bars}</svg></div></div>"
        f'<p class="sentence">{escape(describe_last_bin(bins))}</p>'
    )


def describe_chart(bins: Sequence[Bin], bin_size: int) -> str:
    """Describe the whole chart for screen readers."""
    full = [item for item in bins if item.following]
    if not full:
        return f"Match ratio of each bin of {bin_size} tokens: no bin is full yet."
    switches = sum(item.following != item.scheme for item in full)
    ratios = ", ".join(f"{item.ratio:.2f}" for item in full)
    return (
        f"Match ratio of each bin of {bin_size} tokens: {ratios}. The scheme changed "
        f"{switches} {'time' if switches == 1 else 'times'}; it is {full[-1].following} now."
    )


def _draw_bar(number: int, item: Bin, places: int) -> str:
    left, width = 100 * number / places, 100 / places
    top, threshold = _to_pixels(item.ratio), _to_pixels(item.threshold)
    words = f"bin {number + 1}: {_describe_bin(item)}"
    state = "" if item.following else " open"
    switched = (
        f'<line class="switched" x1="{left + width:.3f}%" x2="{left + width:.3f}%" '
        f'y1="0" y2="{_PLOT}"/>'
        if item.following not in (None, item.scheme)
        else ""
    )
    return (
        f'<g class="bin {item.scheme}{state}" data-details="{escape(words)}">'
        f'<rect class="room" x="{left:.3f}%" y="0" width="{width:.3f}%" height="{_PLOT}"/>'
        f'<rect class="bar" x="{left + 0.15 * width:.3f}%" y="{top}" width="{0.7 * width:.3f}%" '
        f'height="{max(round(_to_pixels(0) - top, 1), 1)}"/>'
        f'<line class="threshold" x1="{left:.3f}%" x2="{left + width:.3f}%" '
        f'y1="{threshold}" y2="{threshold}"/>{switched}</g>'
    )


def _describe_bin(item: Bin) -> str:
    counts = f"{item.matches} of {item.positions} matched, β {item.ratio:.2f}"
    if item.following is None:
        return f"{counts} so far, threshold {item.threshold:.2f}"
    side = "below" if item.ratio < item.threshold else "not below"
    stays = "stays in" if item.following == item.scheme else "switches to"
    held = item.following == Scheme.UNION and side == "not below"
    return (
        f"{counts}, {side} the threshold {item.threshold:.2f}: {stays} {item.following}"
        f"{', which lasts longer' if held else ''}"
    )


def _to_pixels(share: float) -> float:
    """Convert a share to pixels from the top, with a margin for strokes."""
    return round(4 + (1 - share) * (_PLOT - 8), 1)


def _format_probability(value: float | None) -> str:
    if value is None:
        return "not asked"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"
