"""Chat templates: their variables, and the text that they make of messages."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Variable = bool | int | float | str
"""A value of a template's variable."""

_RESERVED = (
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
    "tokenize", "chat_template", "return_dict", "bos_token", "eos_token", "pad_token",
)  # fmt: skip
"""Names that Transformers gives a template itself."""

_QUESTION = "Hello"


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the chat template.

    Raises:
        SafeDraftError: the tokenizer has none.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise SafeDraftError(
            f"{tokenizer.name_or_path} has no chat template; use an instruct model"
        )
    return str(template)


def uses(template: str, variable: str) -> bool:
    """Whether a template contains the name of a variable."""
    return re.search(rf"\b{re.escape(variable)}\b", template) is not None


def set_variables(template: str, variables: Mapping[str, Any], *, fixed: bool = False) -> str:
    """Return the template with values for variables that a request does not set itself.

    Args:
        template: the text in Jinja.
        variables: value by name.
        fixed: whether the values replace those that a request sets.
    """
    lines = []
    for name, value in variables.items():
        assignment = f"{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}"
        missing = f"{{% if {name} is not defined %}}{assignment}{{% endif %}}"
        lines.append(assignment if fixed else missing)
    return "".join(lines) + template


def require_variables(variables: Mapping[str, Any], templates: Sequence[str]) -> None:
    """Check that every variable can be set and that a template reads it.

    Raises:
        SafeDraftError: a name is reserved or unknown to all templates, or a value is not a text,
            number or truth value.
    """
    for name, value in variables.items():
        if not name.isidentifier() or name in _RESERVED:
            raise SafeDraftError(f"template: {name!r} cannot be set: no template has this variable")
        if not isinstance(value, bool | int | float | str):
            raise SafeDraftError(f"template: {name} must be true, false, a number or a text")
        if not any(uses(template, name) for template in templates):
            raise SafeDraftError(f"template: no chat template reads the variable {name!r}")


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any] | None = None,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    begin_reply: bool,
) -> str:
    """The text that the chat template makes of messages.

    Args:
        tokenizer: has the template.
        messages: the finished turns.
        variables: those of this request.
        tools: descriptions of the functions that the reply may call.
        begin_reply: end with the generation prompt, after which the assistant writes.

    Raises:
        SafeDraftError: there is no template, or it rejects the messages.
    """
    template_of(tokenizer)
    try:
        rendered = tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,
            tokenize=False,
            add_generation_prompt=begin_reply,
            **(variables or {}),
        )
    except Exception as error:  # a template can raise any exception: jinja2's errors, ValueError…
        raise SafeDraftError(f"the chat template refuses these messages: {error}") from error
    return str(rendered)


def render_question(
    tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any] | None = None
) -> str:
    """All that the chat template writes around a single question, up to the reply.

    Raises:
        SafeDraftError: there is no template, or it rejects a single question.
    """
    question = [{"role": "user", "content": _QUESTION}]
    return render(tokenizer, question, variables, begin_reply=True)


def header_of(
    tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any] | None = None
) -> str:
    """The text that the chat template writes between the user's message and the reply.

    Raises:
        SafeDraftError: there is no template, or it rejects a single question.
    """
    return render_question(tokenizer, variables).rpartition(_QUESTION)[2]
