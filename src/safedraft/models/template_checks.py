"""Checks of a pair's chat templates: written alike, and in one mode of thinking."""

from __future__ import annotations

from collections.abc import Iterator

from safedraft.core.errors import SafeDraftError
from safedraft.models.check import Check
from safedraft.models.description import ModelDescription
from safedraft.text.reasoning import Thinking, switch_of, thinking_of, why_not_handled
from safedraft.text.template import render

_TURNS = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "An answer of the assistant"},
        {"role": "user", "content": "And now?"},
    ],
)
"""Conversations that the two templates are compared on."""

_SHOWN = 40
"""Characters of a difference that a message shows."""


def check_templates(target: ModelDescription, draft: ModelDescription) -> Iterator[Check]:
    """Compare what the two chat templates make of a few conversations."""
    for model in (target, draft):
        if model.tokenizer is None:
            yield Check("chat template", "warning", f"{model.name}: no tokenizer, token ids only")
        elif not model.tokenizer.chat_template:
            yield Check("chat template", "warning", f"{model.name}: none, so it cannot chat")
    if not _both_chat(target, draft):
        return
    difference = find_difference(target, draft)
    if difference is None:
        yield Check("chat template", "ok", "both models write conversations alike")
        return
    own, other = difference
    yield Check(
        "chat template",
        "warning",
        f"{target.name} writes {own!r} where {draft.name} writes {other!r}: each model gets its "
        'own prompt; template_from = "target" (--template-from) gives both one template, which '
        "vLLM needs",
    )


def find_difference(target: ModelDescription, draft: ModelDescription) -> tuple[str, str] | None:
    """What the two templates write where they first differ; None if they write the same.

    Both models must have a chat template.
    """
    for conversation in _TURNS:
        written = [_render(model, conversation) for model in (target, draft)]
        if written[0] != written[1]:
            return _first_difference(*written)
    return None


def _both_chat(target: ModelDescription, draft: ModelDescription) -> bool:
    return all(
        model.tokenizer is not None and model.tokenizer.chat_template for model in (target, draft)
    )


def _render(model: ModelDescription, turns: list[dict[str, str]]) -> str:
    """What a template makes of a conversation; the refusal's words if it refuses it."""
    assert model.tokenizer is not None
    try:
        return render(model.tokenizer, turns, begin_reply=True)
    except SafeDraftError as error:
        return str(error)


def _first_difference(first: str, second: str) -> tuple[str, str]:
    """Two texts from the line in which they begin to differ, a little beyond that place."""
    letters = zip(first, second, strict=False)
    at = next(
        (at for at, (one, other) in enumerate(letters) if one != other),
        min(len(first), len(second)),
    )
    start = first.rfind("\n", 0, at) + 1
    return first[start : at + _SHOWN], second[start : at + _SHOWN]


def check_thinking(target: ModelDescription, draft: ModelDescription) -> Iterator[Check]:
    """Check that both models begin their replies in the same, handled mode."""
    if not _both_chat(target, draft):
        return
    modes: dict[str, Thinking] = {}
    for model in (target, draft):
        assert model.tokenizer is not None
        try:
            if reason := why_not_handled(model.tokenizer):
                yield Check("thinking", "failure", f"{model.name}: {reason}")
                return
            modes[model.name] = thinking_of(model.tokenizer)
        except SafeDraftError as error:  # a template that answers no single question
            yield Check("thinking", "warning", f"{model.name}: {error}")
            return
    detail = ", ".join(f"{name} {mode.value}" for name, mode in modes.items())
    switches = {switch_of(model.tokenizer) for model in (target, draft) if model.tokenizer}
    switch = next((name for name in switches if name), "enable_thinking")
    off = f"template = {{ {switch} = false }} (--template {switch}=false)"
    if len({*modes.values()}) > 1:
        yield Check("thinking", "failure", f"{detail}: one thinks and the other does not: {off}")
    elif Thinking.OFF not in modes.values():
        detail += f": replies begin with reasoning, which no shipped draft guards; {off} ends that"
        yield Check("thinking", "warning", detail)
    else:
        yield Check("thinking", "ok", f"{detail}: replies begin with the answer")
