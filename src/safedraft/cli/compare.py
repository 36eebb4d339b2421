"""Replies of the target alone and of SSD, or another rule, to one prompt, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.live import Live

from safedraft.cli.render import arrange_panels, make_legend, make_panel
from safedraft.cli.verdict import describe_verdict, judge_reply
from safedraft.text.messages import Message, begun_text
from safedraft.text.results import GenerationResult

if TYPE_CHECKING:
    from safedraft.core.config import SamplingParams
    from safedraft.pair import Pair


@dataclass(frozen=True)
class Method:
    """How a reply is decoded."""

    name: str
    """Its key among the replies."""
    title: str
    rule: str | None
    """None: the pair's own rule."""
    config: Mapping[str, Any] | None = None
    """Constants of the rule in place of the pair's."""


ALONE = Method("target_only", "the target alone", "target_only")
SSD = Method("ssd", "SSD", None)


def name_method(rule: str | None, config: Mapping[str, Any] | None = None) -> Method:
    """The method of a rule; the pair's own rule is called SSD."""
    if rule in (None, SSD.name):
        return replace(SSD, rule=rule, config=config)
    return Method(rule, f"the rule {rule}", rule, config)


def compare(
    pair: Pair,
    messages: Sequence[Message],
    sampling: SamplingParams,
    console: Console,
    replies: dict[str, GenerationResult],
    *,
    method: Method = SSD,
    folded: bool = False,
) -> None:
    """Generate with both methods and show the tokens as they come; Ctrl-C is raised again.

    Args:
        pair: the pair.
        messages: the conversation; an assistant's turn at its end is continued.
        sampling: the parameters of both replies.
        console: the output; outside of a terminal, only the final replies are printed.
        replies: receives the replies by method, also after an interruption.
        method: what is compared with the target alone.
        folded: whether to cover the text of the target alone (for published pictures).
    """
    methods = (ALONE, method)
    running = True

    def column(method: Method) -> RenderableType:
        covered = folded and method is ALONE
        reply = replies.get(method.name, GenerationResult())
        if running and reply.finish_reason == "interrupted":
            verdict = "Decoding …" if reply.trace else "Waits for its first token …"
        else:
            verdict = describe_verdict(reply, messages)
        prefill = begun_text(messages)
        return make_panel(method.title, verdict, reply, prefill=prefill, folded=covered)

    def picture() -> RenderableType:
        return arrange_panels([column(method) for method in methods], console.width)

    console.print(make_legend())
    try:
        with Live(console=console, transient=True, auto_refresh=False) as live:
            for one in methods:
                stream = pair.stream(messages, sampling=sampling, rule=one.rule, config=one.config)
                replies[one.name] = stream.result
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
    """Divide the tokens per second of the second reply by those of the first.

    Returns:
        None if one of the replies is empty, or if only one of them refuses: a short refusal and an
        answer say nothing about each other's speed.
    """
    alone, guarded = replies.values()
    if judge_reply(alone, messages) != judge_reply(guarded, messages):
        return None
    speed = alone.statistics.tokens_per_second
    return guarded.statistics.tokens_per_second / speed if speed else None
