"""The token ids of prompts: of conversations through a chat template, and of raw texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from safedraft.core.errors import SafeDraftError
from safedraft.text.messages import Message, is_valid_unicode, turn_begun, with_system
from safedraft.text.reasoning import MARKERS, begin_reply, join_reasoning, markers_of, thinking_of
from safedraft.text.template import header_of, render, template_of, uses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER = "Certainly"


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    variables: Mapping[str, Any] | None = None,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    continue_final_message: bool | None = None,
) -> list[int]:
    """Return the token ids of a conversation, up to the place where the assistant writes.

    The beginning of a reply follows the same generation prompt as a reply without one, so
    that both are in the same mode and templates that trim messages keep its white space.

    A control token that is spelled out in a message stays text: a separator is inserted into it
    before the template is rendered, and the pieces of the rendered text between the separators are
    encoded one by one. Only the markers of the assistant's own earlier reasoning are left whole,
    since templates look for them.

    Args:
        tokenizer: has the chat template.
        messages: the turns so far.
        variables: variables of the template for this request.
        tools: descriptions of the functions that the reply may call.
        continue_final_message: leave the last turn unfinished; by default, only an assistant turn
            is left unfinished.

    Raises:
        SafeDraftError: the tokenizer has no chat template, or the template rejects the messages.
    """
    template_of(tokenizer)
    given = _all_text([messages, tools])
    if not is_valid_unicode(given):
        raise SafeDraftError("the tools or calls are not valid Unicode: send them as UTF-8")
    separator = _unused_character(given)
    protect = partial(_separate, control_tokens=_control_tokens(tokenizer), separator=separator)
    begun = turn_begun(messages) if continue_final_message is None else continue_final_message
    finished = messages[:-1] if begun else messages
    separated = [_protect_message(message, tokenizer, protect) for message in finished]
    shown = _protect_all(tools, protect)
    text = render(tokenizer, separated, variables, tools=shown, begin_reply=True)
    for message in separated:
        if any(part not in text for part in _required_texts(message)):
            name, role = tokenizer.name_or_path, message["role"]
            raise SafeDraftError(f"the chat template of {name} leaves out the {role} message")
    if begun:
        text += begin_reply(messages[-1], tokenizer, thinking_of(tokenizer, variables), protect)
    return _encode_pieces(tokenizer, text, separator)


def require_system_prompt(
    name: str, tokenizer: PreTrainedTokenizerBase | None, system: str | None
) -> None:
    """Check that a model's chat template can show a system prompt; models without one pass.

    Raises:
        SafeDraftError: the template ignores or rejects system prompts.
    """
    if not (system and tokenizer and tokenizer.chat_template):
        return
    try:
        encode(tokenizer, with_system([{"role": "user", "content": "Hello"}], system))
    except SafeDraftError as error:
        raise SafeDraftError(
            f"{name} cannot have the system prompt that the pair gives it: {error}"
        ) from error


def generation_prompt(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids with which the chat template begins the assistant's turn; empty if it adds none.

    Raises:
        SafeDraftError: the tokenizer has no chat template.
    """
    question: list[Message] = [{"role": "user", "content": "Hello"}]
    prompt = tuple(encode(tokenizer, question))
    full, ended = (render(tokenizer, question, begin_reply=begins) for begins in (True, False))
    header = tuple(tokenizer.encode(full.removeprefix(ended), add_special_tokens=False))
    added = full.startswith(ended) and header and prompt[-len(header) :] == header
    return header if added else ()


def turn_header(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that end the assistant's turn and begin the next one.

    They are what the template writes between a request and its answer, after the end of an answer
    where a template ends the two in different ways.

    Raises:
        SafeDraftError: the tokenizer has no chat template, or it rejects a single question.
    """
    header = header_of(tokenizer)
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER}]
    closing = render(tokenizer, turns, begin_reply=False).rpartition(_ANSWER)[2].rstrip()
    text = header if header.startswith(closing) else closing + header
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a raw text, after the beginning token if the tokenizer adds one.

    As in ``encode``, a control token that is spelled out in the text stays text.

    Raises:
        SafeDraftError: the text is empty or not valid Unicode.
    """
    if not text:
        raise SafeDraftError("the text is empty: give one to continue")
    if not is_valid_unicode(text):
        raise SafeDraftError("the text is not valid Unicode: send it as UTF-8")
    separator = _unused_character(text)
    separated = _separate(text, control_tokens=_control_tokens(tokenizer), separator=separator)
    ids = _encode_pieces(tokenizer, separated, separator)
    beginning = [tokenizer.bos_token_id]
    # An end token that the tokenizer adds is left out: it would end the text.
    return [*beginning, *ids] if tokenizer.encode("")[:1] == beginning else ids


def _all_text(value: Any) -> str:
    """Every text in a JSON value, joined."""
    if isinstance(value, Mapping):
        return "".join(f"{name}{_all_text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return "".join(map(_all_text, value))
    return value if isinstance(value, str) else ""


def _required_texts(message: Message) -> list[str]:
    """Texts of a message that a template must not leave out."""
    if message["role"] == "assistant":
        return [call["function"]["name"] for call in message.get("tool_calls") or ()]
    return [message["content"].strip()]


def _protect_all(value: Any, protect: Callable[[str], str]) -> Any:
    """Protect every text in a JSON value."""
    if isinstance(value, str):
        return protect(value)
    if isinstance(value, Mapping):
        return {protect(name): _protect_all(item, protect) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_protect_all(item, protect) for item in value]
    return value


def _protect_message(
    message: Message, tokenizer: PreTrainedTokenizerBase, protect: Callable[[str], str]
) -> Message:
    """Protect a finished turn's text, except the reasoning's markers in an assistant's turn."""
    shown = {name: value for name, value in message.items() if name != "reasoning"}
    if "tool_calls" in message:
        shown["tool_calls"] = _protect_all(message["tool_calls"], protect)
    content = protect(message["content"])
    markers = markers_of(tokenizer) if message["role"] == "assistant" else None
    if markers is None:
        return {**shown, "content": content}
    for marker in (markers.opening, markers.closing):
        content = content.replace(protect(marker), marker)
    if "reasoning" not in message:
        return {**shown, "content": content}
    reasoning, template = protect(message["reasoning"]), template_of(tokenizer)
    names = [name for name in ("reasoning_content", "reasoning") if uses(template, name)]
    if names:
        return {**shown, "content": content, **dict.fromkeys(names, reasoning)}
    return {**shown, "content": join_reasoning(reasoning, content, markers)}


def _encode_pieces(tokenizer: PreTrainedTokenizerBase, text: str, separator: str) -> list[int]:
    """Encode a text such that no token spans a separator; the separators are dropped."""
    pieces = [piece for piece in text.split(separator) if piece]
    return [id for piece in pieces for id in tokenizer.encode(piece, add_special_tokens=False)]


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts that the tokenizer reads as control tokens, the longest first.

    Some tokenizers add white space as tokens; these are not control tokens.
    """
    added = tokenizer.added_tokens_decoder.values()
    template = template_of(tokenizer) if tokenizer.chat_template else ""
    reasoning = {text for markers in MARKERS for text in (markers.opening, markers.closing)}
    texts = {
        token.content
        for token in added
        if token.special or token.content in template or token.content in reasoning
    }
    return sorted((text for text in texts if len(text.strip()) > 1), key=len, reverse=True)


def _unused_character(text: str) -> str:
    """Return a private character of Unicode that is not in ``text``."""
    for code in range(0xE000, 0xF8FF):
        if chr(code) not in text:
            return chr(code)
    raise SafeDraftError("the text uses every private character of Unicode: leave one out")


def _separate(text: str, *, control_tokens: Sequence[str], separator: str) -> str:
    """Insert ``separator`` after the first character of every control token spelled in a text."""
    for token in control_tokens:
        text = text.replace(token, token[0] + separator + token[1:])
    return text
