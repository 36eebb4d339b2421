"""Messages of a conversation, and the token ids of the prompt that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``."""

_ROLES = ("system", "user", "assistant")


def conversation(
    prompt: str | Sequence[Mapping[str, Any]], prefill: str = "", system: str | None = None
) -> list[Message]:
    """Return the checked messages of a request.

    Args:
        prompt: the text of one user message, or all messages; a content may be parts of text, as in
            OpenAI's API.
        prefill: the beginning of the reply; it becomes an assistant message at the end.
        system: the system prompt, which comes first.

    Raises:
        SafeDraftError: no user message has text, a message has no valid role or content, or there
            is a prefill after messages that already end in an assistant turn.
    """
    given = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(given, Sequence):
        raise SafeDraftError(
            f"a prompt is a text or a list of messages, not {type(prompt).__name__}; token ids go "
            "to stream_ids or generate_many_ids"
        )
    messages: list[Message] = [_join_parts(message) for message in given]
    if system is not None:
        if messages and messages[0].get("role") == "system":
            raise SafeDraftError("the messages begin with a system prompt: leave out system")
        messages.insert(0, {"role": "system", "content": system})
    final: list[Message] = [{"role": "assistant", "content": prefill}] if prefill else []
    for message in [*messages, *final]:
        _require_valid(message)
    if not any(message["role"] == "user" and message["content"].strip() for message in messages):
        raise SafeDraftError("the prompt is empty: give a message to answer")
    if final and turn_begun(messages):
        raise SafeDraftError("the messages end in an assistant turn already: leave out the prefill")
    return messages + final


def turn_begun(messages: Sequence[Message]) -> bool:
    """Return whether the last message is an assistant turn, which the reply continues."""
    return messages[-1]["role"] == "assistant"


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """Return ``messages`` with ``system`` in front of the conversation's own system prompt."""
    if not system:
        return list(messages)
    if messages and messages[0]["role"] == "system":
        joined = f"{system}\n\n{messages[0]['content']}"
        return [{"role": "system", "content": joined}, *messages[1:]]
    return [{"role": "system", "content": system}, *messages]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    continue_final_message: bool | None = None,
) -> list[int]:
    """Return the token ids of a conversation, up to the place where the assistant writes.

    A control token that is spelled out in a message stays text: a separator is inserted into it
    before the template is rendered, and the pieces of the rendered text between the separators are
    encoded one by one.

    Args:
        tokenizer: has the chat template.
        messages: the turns so far.
        continue_final_message: leave the last turn unfinished; by default, only an assistant turn
            is left unfinished.

    Raises:
        SafeDraftError: the tokenizer has no chat template, or the template rejects the messages.
    """
    if not tokenizer.chat_template:
        raise SafeDraftError(
            f"{tokenizer.name_or_path} has no chat template; use an instruct model"
        )
    separator = _unused_character("".join(message["content"] for message in messages))
    control_tokens = _control_tokens(tokenizer)
    if continue_final_message is None:
        continue_final_message = turn_begun(messages)
    separated = [
        {**message, "content": _separate(message["content"], control_tokens, separator)}
        for message in messages
    ]
    try:
        rendered = tokenizer.apply_chat_template(
            separated,
            tokenize=False,
            add_generation_prompt=not continue_final_message,
            continue_final_message=continue_final_message,
        )
    except Exception as error:  # a template can raise any exception: jinja2's errors, ValueError…
        raise SafeDraftError(f"the chat template refuses these messages: {error}") from error
    for message in separated:
        if message["role"] != "assistant" and message["content"].strip() not in str(rendered):
            name, role = tokenizer.name_or_path, message["role"]
            raise SafeDraftError(f"the chat template of {name} leaves out the {role} message")
    return _encode_pieces(tokenizer, str(rendered), separator)


def generation_prompt(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids with which the chat template begins the assistant's turn; empty if it adds none.

    Raises:
        SafeDraftError: the tokenizer has no chat template.
    """
    question: list[Message] = [{"role": "user", "content": "Hello"}]
    prompt = tuple(encode(tokenizer, question))
    full, ended = (
        str(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=begins))
        for begins in (True, False)
    )
    header = tuple(tokenizer.encode(full.removeprefix(ended), add_special_tokens=False))
    added = full.startswith(ended) and header and prompt[-len(header) :] == header
    return header if added else ()


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a raw text, after the beginning token if the tokenizer adds one.

    As in ``encode``, a control token that is spelled out in the text stays text.

    Raises:
        SafeDraftError: the text is empty or not valid Unicode.
    """
    if not text:
        raise SafeDraftError("the text is empty: give one to continue")
    if not _is_valid_unicode(text):
        raise SafeDraftError("the text is not valid Unicode: send it as UTF-8")
    separator = _unused_character(text)
    separated = _separate(text, _control_tokens(tokenizer), separator)
    ids = _encode_pieces(tokenizer, separated, separator)
    beginning = [tokenizer.bos_token_id]
    # An end token that the tokenizer adds is left out: it would end the text.
    return [*beginning, *ids] if tokenizer.encode("")[:1] == beginning else ids


def _join_parts(message: Mapping[str, Any]) -> Message:
    """Join a content that is a list of text parts."""
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), list | tuple):
        return message
    parts = message["content"]
    text = join_text_parts(parts)
    if text is None:
        kinds = [part.get("type") if isinstance(part, Mapping) else part for part in parts]
        kind = next((kind for kind in kinds if kind != "text"), "text")
        raise SafeDraftError(
            f"a message has a part of type {kind!r}: only text can be read, as "
            "{'type': 'text', 'text': …}"
        )
    return {**message, "content": text}


def join_text_parts(parts: Sequence[Any]) -> str | None:
    """Join the parts of a message's content; None if there are none or one is not plain text."""
    texts = [
        part["text"]
        for part in parts
        if isinstance(part, Mapping)
        and part.get("type") == "text"
        and set(part) == {"type", "text"}
    ]
    only_text = parts and len(texts) == len(parts) and all(isinstance(text, str) for text in texts)
    return "".join(texts) if only_text else None


def _require_valid(message: Message) -> None:
    if not isinstance(message, Mapping) or not all(
        isinstance(message.get(name), str) for name in ("role", "content")
    ):
        raise SafeDraftError("every message needs a 'role' and a 'content', both strings")
    if message["role"] not in _ROLES:
        raise SafeDraftError(f"role {message['role']!r} is unknown: {', '.join(_ROLES)} are known")
    if not _is_valid_unicode(message["content"]):
        raise SafeDraftError("a message is not valid Unicode: send it as UTF-8")


def _is_valid_unicode(text: str) -> bool:
    """Return whether text can be written as UTF-8; broken input contains lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encode_pieces(tokenizer: PreTrainedTokenizerBase, text: str, separator: str) -> list[int]:
    """Encode a text such that no token spans a separator; the separators are dropped."""
    pieces = [piece for piece in text.split(separator) if piece]
    return [id for piece in pieces for id in tokenizer.encode(piece, add_special_tokens=False)]


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts that the tokenizer reads as control tokens, the longest first.

    Some tokenizers add white space as tokens; these are not control tokens.
    """
    added = tokenizer.added_tokens_decoder.values()
    template = str(tokenizer.chat_template or "")
    texts = {token.content for token in added if token.special or token.content in template}
    return sorted((text for text in texts if len(text.strip()) > 1), key=len, reverse=True)


def _unused_character(text: str) -> str:
    """Return a private character of Unicode that is not in ``text``."""
    for code in range(0xE000, 0xF8FF):
        if chr(code) not in text:
            return chr(code)
    raise SafeDraftError("the text uses every private character of Unicode: leave one out")


def _separate(text: str, control_tokens: Sequence[str], separator: str) -> str:
    """Insert ``separator`` after the first character of every control token spelled in a text."""
    for token in control_tokens:
        text = text.replace(token, token[0] + separator + token[1:])
    return text
