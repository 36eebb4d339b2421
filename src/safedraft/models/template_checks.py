"""Checks of a pair's chat templates: written alike, and in one mode of thinking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from safedraft.core.errors import IncompatiblePairError, SafeDraftError
from safedraft.models.check import Check
from safedraft.models.description import ModelDescription
from safedraft.text.encode import require_system_prompt
from safedraft.text.reasoning import (
    Thinking,
    hides_mode,
    switch_of,
    thinking_of,
    why_not_handled,
)
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


def check_system_prompt(model: ModelDescription, system: str | None) -> Iterator[Check]:
    """Check that a model's chat template can show the system prompt that the pair gives it."""
    try:
        require_system_prompt(model.name, model.tokenizer, system)
    except SafeDraftError as error:
        yield Check("system prompt", "failure", str(error))


def check_shared_template(target: ModelDescription, draft: ModelDescription) -> Iterator[Check]:
    """Check that both models read one template as the same tokens."""
    if not _both_chat(target, draft):
        return
    if difference := find_difference(target, draft):
        own, other = difference
        detail = (
            f"both have one template, in which {target.name} reads {own!r} where {draft.name} "
            f"reads {other!r}: leave template_from (--template-from) out"
        )
        yield Check("chat template", "failure", detail)


def find_difference(target: ModelDescription, draft: ModelDescription) -> tuple[str, str] | None:
    """The first difference between what the two models read; None if they read the same.

    Compared are the texts of a few conversations, and then their tokens. Both models must have a
    chat template.
    """
    for conversation in _TURNS:
        written = [_render(model, conversation) for model in (target, draft)]
        if written[0] != written[1]:
            return _first_difference(*written)
        tokens = [
            _tokenize(model, text) for model, text in zip((target, draft), written, strict=True)
        ]
        if tokens[0] != tokens[1]:
            return _first_differing_tokens(*tokens)
    return None


def _tokenize(model: ModelDescription, text: str) -> list[tuple[int, str]]:
    """Ids of a text, with their tokens."""
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    return [(id, model.tokens.get(id, "")) for id in ids]


def _first_differing_tokens(
    one: Sequence[tuple[int, str]], other: Sequence[tuple[int, str]]
) -> tuple[str, str]:
    pairs = zip_longest(one, other, fillvalue=(-1, ""))
    first, second = next((x, y) for x, y in pairs if x != y)
    shown = [f"{token} (token {id})" for id, token in (first, second)]
    return shown[0], shown[1]


def _both_chat(target: ModelDescription, draft: ModelDescription) -> bool:
    return all(
        model.tokenizer is not None and model.tokenizer.chat_template for model in (target, draft)
    )


def _render(model: ModelDescription, turns: list[dict[str, str]]) -> str:
    """Render a conversation; if the template rejects it, return the error's message."""
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
    switch = next((name for name in switches if name), None)
    remedy = (
        f"template = {{ {switch} = false }} (--template {switch}=false) switches it off"
        if switch
        else "no variable of a chat template switches it off"
    )
    if len({*modes.values()}) > 1:
        yield Check("thinking", "failure", f"{detail}: one thinks and the other does not: {remedy}")
    elif hidden := [model for model in (target, draft) if hides_mode(model.tokenizer)]:
        names = " and ".join(model.name for model in hidden)
        yield Check(
            "thinking",
            "warning",
            f"{names}: the chat template knows reasoning and does not show whether replies begin "
            "with it; SafeDraft takes it that they do not: with a model that thinks anyway, the "
            "draft was never tested, and beginnings of replies stand before the reasoning",
        )
    elif Thinking.OFF not in modes.values():
        detail += f": replies begin with reasoning, which no shipped draft guards: {remedy}"
        words = ("--template", f"{switch}=false") if switch else ()
        yield Check("thinking", "warning", detail, words)
    else:
        yield Check("thinking", "ok", f"{detail}: replies begin with the answer")


def require_one_template(descriptions: Sequence[ModelDescription]) -> None:
    """Refuse two models for which one prompt would not do, as vLLM gives it to both.

    Raises:
        IncompatiblePairError: they write their prompts differently, or only one has a tokenizer.
    """
    tokenizers = [description.tokenizer for description in descriptions if description.tokenizer]
    if len(tokenizers) == 1:
        raise IncompatiblePairError(
            "only one of the models has a tokenizer, so it cannot be checked that token ids mean "
            "the same to both: add the tokenizer files of the other"
        )
    templates = [bool(tokenizer.chat_template) for tokenizer in tokenizers]
    if not any(templates):
        return  # ids only
    difference = find_difference(*descriptions) if all(templates) else ("one", "none")
    if difference:
        raise IncompatiblePairError(
            "the chat templates of target and draft differ, and vLLM gives both models one prompt: "
            f"{difference[0]!r} against {difference[1]!r}; "
            'template_from = "target" in the pair (--template-from target) gives both one template'
        )
