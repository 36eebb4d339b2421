"""Replies of the target alone and of SSD to one prompt, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.live import Live

from safedraft.cli.render import arrange_panels, make_legend, make_panel
from safedraft.text.messages import Message, begun_text
from safedraft.text.results import GenerationResult

if TYPE_CHECKING:
    from safedraft.core.config import SamplingParams
    from safedraft.pair import Pair

METHODS = {"target_only": "the target alone", "ssd": "SSD"}


def compare(
    pair: Pair,
    messages: Sequence[Message],
    sampling: SamplingParams,
    console: Console,
    replies: dict[str, GenerationResult],
    *,
    rule: str | None = None,
    folded: bool = False,
) -> None:
    """Generate with both methods and show the tokens as they come; Ctrl-C is raised again.

    Args:
        pair: the pair.
        messages: the conversation; an assistant's turn at its end is continued.
        sampling: the parameters of both replies.
        console: the output; if it is no terminal, only the final replies are printed.
        replies: receives the replies by method, also after an interruption.
        rule: the rule beside the target alone; None: the pair's own.
        folded: whether to cover the text of the target alone (for published pictures).
    """

    def column(method: str, title: str) -> RenderableType:
        covered = folded and method == "target_only"
        reply = replies.get(method, GenerationResult())
        return make_panel(title, reply, prefill=begun_text(messages), folded=covered)

    def picture() -> RenderableType:
        return arrange_panels([column(method, title) for method, title in METHODS.items()])

    try:
        with Live(console=console, transient=True, auto_refresh=False) as live:
            for method in METHODS:
                decides = method if method == "target_only" else rule
                stream = pair.stream(messages, sampling=sampling, rule=decides)
                replies[method] = stream.result
                try:
                    for _ in stream:
                        live.update(picture(), refresh=console.is_terminal)
                finally:
                    stream.close()
    finally:
        console.print(picture())
        console.print(make_legend())


def compute_speedup(replies: dict[str, GenerationResult]) -> float | None:
    """Divide SSD's tokens per second by those of the target alone."""
    alone = replies["target_only"].statistics.tokens_per_second
    return replies["ssd"].statistics.tokens_per_second / alone if alone else None
