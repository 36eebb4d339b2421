"""Reasoning before the answer: whether a chat template asks for it, and where it ends.

A thinking model writes its reasoning between two markers and the answer after them. Some templates
open the reasoning themselves (R1's distillations), some leave that to the model (Qwen3), and some
close an empty one where a variable switches it off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from safedraft.core.errors import SafeDraftError
from safedraft.text.template import header_of, render_question, template_of, uses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Markers(NamedTuple):
    """The texts around a reasoning, and the white space that models write inside and after it."""

    opening: str
    closing: str
    inside: str = "\n"
    after: str = "\n\n"


MARKERS = (
    Markers("<think>", "</think>"),
    Markers("<thought>", "</thought>"),
    Markers("[THINK]", "[/THINK]", "", ""),
    Markers("<|START_THINKING|>", "<|END_THINKING|>", "", ""),
)
"""Markers of published models: Qwen3, DeepSeek-R1, SmolLM3 and GLM; EXAONE; Magistral; Command."""

SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates switch the reasoning on or off."""

_CHANNELS = "<|channel"


class Thinking(StrEnum):
    """Whether a reply begins with reasoning."""

    OFF = "off"
    """It begins with the answer."""
    OPENED = "opened"
    """The template has opened the reasoning, in which the reply begins."""
    BY_MODEL = "by model"
    """The model opens the reasoning itself."""


def markers_of(tokenizer: PreTrainedTokenizerBase) -> Markers | None:
    """The markers that the chat template knows; None without reasoning or without a template."""
    if not tokenizer.chat_template:
        return None
    template = template_of(tokenizer)
    return next((markers for markers in MARKERS if markers.closing in template), None)


def thinking_of(
    tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any] | None = None
) -> Thinking:
    """Whether a reply after the chat template begins with reasoning.

    Args:
        tokenizer: has the template, in which the pair's own variables are set.
        variables: those of a request.

    Raises:
        SafeDraftError: the template rejects a single question.
    """
    markers = markers_of(tokenizer)
    if markers is None:
        return Thinking.OFF
    header = header_of(tokenizer, variables)
    if markers.closing in header:
        return Thinking.OFF
    if markers.opening in header:
        return Thinking.OPENED
    switch = switch_of(tokenizer)
    if switch is None:
        return Thinking.OFF
    off = header_of(tokenizer, {**(variables or {}), switch: False})
    return Thinking.BY_MODEL if off != header else Thinking.OFF


def hides_mode(tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Whether a template knows reasoning and does not show if replies begin with it.

    Examples are the first templates of R1's distillations, whose models think, and those of Qwen3's
    instruction-tuned models, which do not.
    """
    if tokenizer is None:
        return False
    markers = markers_of(tokenizer)
    if markers is None or switch_of(tokenizer):
        return False
    header = header_of(tokenizer)
    return markers.opening not in header and markers.closing not in header


def switch_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The variable that switches the reasoning, if the chat template has one."""
    template = template_of(tokenizer)
    return next((name for name in SWITCHES if uses(template, name)), None)


def why_not_handled(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why a thinking template cannot be used; None if it can, or if replies do not think.

    Raises:
        SafeDraftError: the template rejects a single question.
    """
    if not tokenizer.chat_template:
        return None
    template = template_of(tokenizer)
    if _CHANNELS in template:
        return "its chat template has channels (as gpt-oss), in which SafeDraft begins no reply"
    switch = switch_of(tokenizer)
    if switch is None or markers_of(tokenizer):
        return None
    if render_question(tokenizer) == render_question(tokenizer, {switch: False}):
        return None
    return (
        f"its chat template thinks ({switch}) between markers that SafeDraft does not know: set "
        f"template = {{ {switch} = false }} in the pair"
    )


def split_reasoning(text: str, markers: Markers, *, opened: bool = False) -> tuple[str | None, str]:
    """Split a text into its reasoning, None without one, and the answer after it.

    Args:
        text: a reply or its beginning.
        markers: the markers of the model that wrote it.
        opened: whether the reasoning began before the text.
    """
    begins = text.lstrip().startswith(markers.opening)
    if not (opened or begins):
        return None, text
    inside = text.lstrip().removeprefix(markers.opening).lstrip("\n") if begins else text
    reasoning, closing, answer = inside.partition(markers.closing)
    return (reasoning.rstrip("\n"), answer.lstrip("\n")) if closing else (reasoning, "")


def join_reasoning(reasoning: str, answer: str, markers: Markers) -> str:
    """A finished reasoning and the answer after it, as models write them."""
    inside = markers.opening + markers.inside + reasoning + markers.inside + markers.closing
    return inside + markers.after + answer


def split_reply(
    text: str, messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[str | None, str]:
    """Split a reply to messages into its reasoning, None without one, and the answer after it.

    Args:
        text: the reply, without what was prefilled.
        messages: the conversation that it answers or continues.
        tokenizer: has the chat template in which the messages were written.
    """
    markers = markers_of(tokenizer) if tokenizer else None
    mode = thinking_of(tokenizer) if tokenizer and markers else Thinking.OFF
    last = messages[-1]
    continues = last["role"] == "assistant"
    if markers is None or mode is Thinking.OFF or (continues and last["content"]):
        return None, text
    return split_reasoning(text, markers, opened=continues or mode is Thinking.OPENED)


def answer_of(text: str) -> str:
    """The part of a reply after the reasoning that it begins with; all of it without one.

    Without the end of the reasoning there is no answer yet: the text after the opening counts.
    """
    for markers in MARKERS:
        reasoning, answer = split_reasoning(text, markers)
        if reasoning is not None:
            return answer if markers.closing in text else reasoning
    return text


def begin_reply(
    message: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase,
    mode: Thinking,
    protect: Callable[[str], str],
) -> str:
    """Write the beginning of a reply after the generation prompt.

    Args:
        message: the assistant's unfinished turn: its ``content``, and in thinking mode its
            ``reasoning``, which is unfinished itself if the content is empty.
        tokenizer: has the chat template.
        mode: whether replies begin with reasoning.
        protect: keeps control tokens that are spelled out in a text from acting as such.

    Raises:
        SafeDraftError: there is a reasoning where replies have none, or an answer in thinking mode
            without one.
    """
    content, reasoning = message["content"], message.get("reasoning")
    markers = markers_of(tokenizer)
    if mode is Thinking.OFF or markers is None:
        if reasoning:
            raise SafeDraftError(
                f"no reply of {tokenizer.name_or_path} begins with reasoning here: leave out the "
                "reasoning, or switch thinking on in the pair's template"
            )
        return protect(content)
    if reasoning is None:
        reasoning, content = split_reasoning(content, markers)
    if reasoning is None and not content:
        return ""
    if reasoning is None:
        raise SafeDraftError(
            f"{tokenizer.name_or_path} thinks before it answers: begin its reasoning (a final "
            "assistant message with 'reasoning'), give both, or switch thinking off "
            "(template = { enable_thinking = false })"
        )
    opening = markers.opening + markers.inside
    whole = opening + protect(reasoning)
    if content:
        whole = join_reasoning(protect(reasoning), protect(content), markers)
    return whole.removeprefix(opening) if mode is Thinking.OPENED else whole
