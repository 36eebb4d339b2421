"""The target alone and SSD, side by side on one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.live import Live

from safedraft.cli.render import legend, panel, side_by_side
from safedraft.text.messages import Message
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
    prefill: str = "",
    folded: bool = False,
) -> None:
    """Decode with both, showing both as they come; Ctrl-C keeps what was said and is raised again.

    Args:
        pair: what decodes.
        messages: the request.
        sampling: the same for both.
        console: where to draw; while it is no terminal, only the outcome is printed.
        replies: filled with what each said, by method.
        prefill: how the assistant's turn begins.
        folded: cover the text of the target alone (for pictures that are published).
    """

    def column(method: str, title: str) -> RenderableType:
        covered = folded and method == "target_only"
        return panel(
            title, replies.get(method, GenerationResult()), prefill=prefill, folded=covered
        )

    def picture() -> RenderableType:
        return side_by_side([column(method, title) for method, title in METHODS.items()])

    try:
        with Live(console=console, transient=True, auto_refresh=False) as live:
            for method in METHODS:
                stream = pair.stream(messages, prefill=prefill, sampling=sampling, rule=method)
                replies[method] = stream.result
                try:
                    for _ in stream:
                        live.update(picture(), refresh=console.is_terminal)
                finally:
                    stream.close()
    finally:
        console.print(picture())
        console.print(legend())


def speedup(replies: dict[str, GenerationResult]) -> float | None:
    """Tokens per second of SSD over those of the target alone."""
    alone = replies["target_only"].statistics.tokens_per_second
    return replies["ssd"].statistics.tokens_per_second / alone if alone else None
