"""Replies of the target alone and of SSD, or another rule, to one prompt, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


_TITLES = {
    "target_only": "the target alone",
    "ssd": "SSD alone",
    "risk": "SSD with the request's risk",
}


@dataclass(frozen=True)
class Method:
    """The rule that decodes a reply, and its constants."""

    rule: str
    config: Mapping[str, Any] | None = None
    """Constants of the rule in place of those of the pair."""

    @property
    def title(self) -> str:
        """The name of the rule in titles."""
        return _TITLES.get(self.rule, f"the rule {self.rule}")


ALONE = Method("target_only")


def compare(
    pair: Pair,
    messages: Sequence[Message],
    sampling: SamplingParams,
    console: Console,
    replies: dict[str, GenerationResult],
    *,
    method: Method | None = None,
    folded: bool = False,
) -> None:
    """Generate with both methods and show the tokens as they come; Ctrl-C is raised again.

    Args:
        pair: the pair.
        messages: the conversation; an assistant's turn at its end is continued.
        sampling: the parameters of both replies.
        console: the output; outside of a terminal, only the final replies are printed.
        replies: receives the replies by rule, also after an interruption.
        method: the method to compare with the target alone; by default the pair's own rule.
        folded: whether to cover the text of the target alone (for published pictures).
    """
    methods = (ALONE, method or Method(pair.rule))
    running = True

    def column(method: Method) -> RenderableType:
        covered = folded and method is ALONE
        reply = replies.get(method.rule, GenerationResult())
        decoding = running and reply.finish_reason == "interrupted"
        if decoding:
            verdict = "Decoding …" if reply.trace else "Waits for its first token …"
        else:
            verdict = describe_verdict(reply, messages)
        return make_panel(
            method.title,
            verdict,
            reply,
            prefill=begun_text(messages),
            folded=covered,
            ended=not decoding,
        )

    def picture() -> RenderableType:
        return arrange_panels([column(method) for method in methods], console.width)

    console.print(make_legend())
    try:
        with Live(console=console, transient=True, auto_refresh=False) as live:
            for decoded in methods:
                stream = pair.stream(
                    messages, sampling=sampling, rule=decoded.rule, config=decoded.config
                )
                replies[decoded.rule] = stream.result
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
