"""Replies of the target alone and of SSD to one prompt, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.live import Live

from safedraft.cli.render import arrange_panels, make_legend, make_panel
from safedraft.cli.verdict import describe_verdict, judge_reply
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
        console: the output; outside of a terminal, only the final replies are printed.
        replies: receives the replies by method, also after an interruption.
        rule: the rule that is compared with the target alone; None: the pair's own.
        folded: whether to cover the text of the target alone (for published pictures).
    """

    running = True

    def column(method: str, title: str) -> RenderableType:
        covered = folded and method == "target_only"
        reply = replies.get(method, GenerationResult())
        if running and reply.finish_reason == "interrupted":
            verdict = "Decoding …" if reply.trace else "Waits for its first token …"
        else:
            verdict = describe_verdict(reply, messages)
        return make_panel(title, verdict, reply, prefill=begun_text(messages), folded=covered)

    def picture() -> RenderableType:
        panels = [column(method, title) for method, title in METHODS.items()]
        return arrange_panels(panels, console.width)

    console.print(make_legend())
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
        running = False
        console.print(picture())


def compute_speedup(
    replies: dict[str, GenerationResult], messages: Sequence[Message]
) -> float | None:
    """Divide SSD's tokens per second by those of the target alone.

    Returns:
        None if one of the replies is empty, or if only one of them refuses: a short refusal and an
        answer say nothing about each other's speed.
    """
    alone, guarded = (replies[method] for method in METHODS)
    if judge_reply(alone, messages) != judge_reply(guarded, messages):
        return None
    speed = alone.statistics.tokens_per_second
    return guarded.statistics.tokens_per_second / speed if speed else None
