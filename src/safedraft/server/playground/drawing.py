"""Replies in HTML: coloured tokens, the chart of the bins, figures; what was said is escaped."""

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
"""Classes, sample and meaning of each kind of token; they differ in more than colour."""

_PLOT = 120  # the chart's height, in pixels
_FEWEST = 12  # places for bins, so that the first bars are not as broad as the chart
_NARROWEST = 8  # pixels of a place; a chart with more of them scrolls


def legend() -> str:
    """What the tokens' looks mean."""
    rows = "".join(
        f'<li><span class="token {look}">{sample}</span> {meaning}</li>'
        for look, sample, meaning in LEGEND
    )
    return f'<ul class="legend">{rows}</ul>'


def look(token: Token) -> str:
    """The CSS classes of a token."""
    if token.scheme is None:
        kind = "alone"
    else:
        kind = "matched" if token.matched else f"corrected {token.scheme}"
    if not token.text:
        return f"token {kind} empty"
    return f"token {kind} break" if not token.text.strip("\r\n") else f"token {kind}"


def told(token: Token) -> str:
    """What a token's details say, a fact a line."""
    if token.scheme is None:
        lines = ["the target’s own", f"target {_probability(token.target_probability)}"]
    else:
        kind = "matched" if token.matched else "corrected"
        lines = [
            f"{kind} in {token.scheme}",
            f"draft {_probability(token.draft_probability)}",
            f"target {_probability(token.target_probability)}",
            f"weight α {token.alpha:g}",
        ]
    if not token.text:
        lines.append("no text: the reply’s end, or a part of a character")
    return "\n".join([*lines, f"block {token.block}"])


def draw_token(token: Token) -> str:
    """One token; the page's script shows ``data-told`` where it is pointed at."""
    return (
        f'<span class="{look(token)}" data-told="{escape(told(token))}">{escape(token.text)}</span>'
    )


def draw_prefill(prefill: str) -> str:
    """What the assistant was made to say."""
    return f'<span class="begun" title="the prefill">{escape(prefill)}</span>' if prefill else ""


def draw_question(prompt: str) -> str:
    """What the user says."""
    return f'<p class="question"><b>You</b> {escape(prompt)}</p>'


def draw_reply(drawn: str) -> str:
    """A reply of a turn that is over."""
    return f'<div class="said">{drawn}</div>'


def draw_code(code: str) -> str:
    """Python to read and to copy."""
    return f'<button type="button">Copy</button><pre tabindex="0">{escape(code)}</pre>'


def problem(message: str) -> str:
    """What is wrong, where it is seen and heard at once."""
    return f'<span class="problem" role="alert">{escape(message)}</span>'


def figures(reply: GenerationResult, state: str) -> str:
    """The line of figures over a reply; ``state`` is a word on how it stands."""
    cost = reply.statistics
    parts = [f"<b>{cost.tokens_per_second:.1f}</b> tokens/s", f"{cost.tokens} tokens"]
    if any(token.scheme for token in reply.trace[:1]):
        parts.append(f"{cost.matches / max(cost.tokens, 1):.0%} matched")
        parts.append(f"{cost.tokens / max(cost.blocks, 1):.1f} tokens/target pass")
    shown = parts if cost.tokens else []
    return f'<p class="figures">{" · ".join([*shown, escape(state)] if state else shown)}</p>'


def sentence(bins: Sequence[Bin]) -> str:
    """The last full bin in words."""
    full = [one for one in bins if one.following]
    if not full:
        return "The first bin is not full yet." if bins else ""
    return f"Bin {len(full)}: {_comparison(full[-1])}."


def chart(bins: Sequence[Bin], bin_size: int) -> str:
    """Match ratios as bars and thresholds as a falling line, in an SVG as wide as there is room."""
    places = max(len(bins), _FEWEST)
    bars = "".join(_bar(number, one, places) for number, one in enumerate(bins))
    grid = "".join(
        f'<line class="grid" x1="0" x2="100%" y1="{_y(at)}" y2="{_y(at)}"/>' for at in (0, 0.5, 1)
    )
    return (
        '<div class="plot"><div class="axis" aria-hidden="true"><span>1</span><span>½</span>'
        '<span>0</span></div><div class="bars">'
        f'<svg role="img" aria-label="{escape(summary(bins, bin_size))}" width="100%" '
        f'height="{_PLOT}" style="min-width:{places * _NARROWEST}px">'
        '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect width="6" height="6" class="ground"/>'
        '<rect width="2.5" height="6" class="stroke"/></pattern></defs>'
        f"{grid}{bars}</svg></div></div>"
        f'<p class="sentence">{escape(sentence(bins))}</p>'
    )


def summary(bins: Sequence[Bin], bin_size: int) -> str:
    """The whole chart in words, for those who do not see it."""
    full = [one for one in bins if one.following]
    if not full:
        return f"Match ratio of each bin of {bin_size} tokens: no bin is full yet."
    switches = sum(one.following != one.scheme for one in full)
    ratios = ", ".join(f"{one.ratio:.2f}" for one in full)
    return (
        f"Match ratio of each bin of {bin_size} tokens: {ratios}. The scheme changed "
        f"{switches} {'time' if switches == 1 else 'times'}; it is {full[-1].following} now."
    )


def _bar(number: int, one: Bin, places: int) -> str:
    left, width = 100 * number / places, 100 / places
    top, threshold = _y(one.ratio), _y(one.threshold)
    words = f"bin {number + 1}: {_comparison(one)}"
    state = "" if one.following else " open"
    switched = (
        f'<line class="switched" x1="{left + width:.3f}%" x2="{left + width:.3f}%" '
        f'y1="0" y2="{_PLOT}"/>'
        if one.following not in (None, one.scheme)
        else ""
    )
    return (
        f'<g class="bin {one.scheme}{state}" data-told="{escape(words)}">'
        f'<rect class="room" x="{left:.3f}%" y="0" width="{width:.3f}%" height="{_PLOT}"/>'
        f'<rect class="bar" x="{left + 0.15 * width:.3f}%" y="{top}" width="{0.7 * width:.3f}%" '
        f'height="{max(round(_y(0) - top, 1), 1)}"/>'
        f'<line class="threshold" x1="{left:.3f}%" x2="{left + width:.3f}%" '
        f'y1="{threshold}" y2="{threshold}"/>{switched}</g>'
    )


def _comparison(one: Bin) -> str:
    found = f"{one.matches} of {one.positions} matched, β {one.ratio:.2f}"
    if one.following is None:
        return f"{found} so far, threshold {one.threshold:.2f}"
    side = "below" if one.ratio < one.threshold else "not below"
    stays = "stays in" if one.following == one.scheme else "switches to"
    held = one.following == Scheme.UNION and side == "not below"
    return (
        f"{found}, {side} the threshold {one.threshold:.2f}: {stays} {one.following}"
        f"{', which lasts longer' if held else ''}"
    )


def _y(share: float) -> float:
    """Pixels from the top, with a little room at both ends for strokes."""
    return round(4 + (1 - share) * (_PLOT - 8), 1)


def _probability(value: float | None) -> str:
    if value is None:
        return "not asked"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"
