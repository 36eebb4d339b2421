"""Grammars of replies: which tokens may come next, by llguidance.

A grammar is compiled once for each request. Where the request lets a refusal out, the grammar is
"what was asked for, or a refusal": a model that would refuse may do so, and SSD combines the two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safedraft.core.config import StructuredOutputs
from safedraft.core.constraint import UNLIKELY, Constraint, forbid, unpack_bits
from safedraft.core.errors import FormError, SafeDraftError, first_line
from safedraft.core.extras import require_extra
from safedraft.core.rule import State
from safedraft.text.refusals import LANGUAGES, OPENINGS

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from transformers import PreTrainedTokenizerBase

_JSON_BEGINNINGS = '{["-0123456789tfn'  # of a value, after whitespace
_WHITESPACE = r"( |\n {0,16})?"  # in JSON: with no limit, small models may write nothing else
_FORM = "form"  # the name of what was asked for, in a grammar that also lets a refusal out
_NOT_WRITTEN = ("type", "format", "title", "description", "$ref", "$schema", "$id", "$comment")
"""Texts of a schema that never appear in a reply."""
_KEPT = 64  # compiled grammars

Constrain = Callable[[State], Constraint]
"""Makes what keeps one reply to a form."""


class Grammars:
    """Compiles the grammars of a pair's requests.

    Args:
        tokenizer: tokenizer of the target.
        end_tokens: ids that end a reply; they may come where the grammar is complete.
        vocabulary: V, the number of shared ids.

    Raises:
        SafeDraftError: llguidance is missing, or cannot read the tokenizer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, end_tokens: frozenset[int], vocabulary: int
    ) -> None:
        require_extra("structured output", "structured", "llguidance")
        from llguidance.hf import from_tokenizer

        try:
            self._tokenizer = from_tokenizer(tokenizer, eos_token=sorted(end_tokens))
        except ValueError as error:
            raise SafeDraftError(f"structured_outputs: {first_line(error)}") from error
        self._vocabulary = vocabulary
        self._match = lru_cache(_KEPT)(self._compile)  # replies to one request have one grammar

    def compile(self, asked: StructuredOutputs) -> Constrain:
        """Compile the form of a request; the result makes a grammar for each reply.

        Raises:
            SafeDraftError: the schema, expression or grammar is wrong or not supported.
        """
        form = self._match(_dump(write_form(asked)))
        either = self._match(_dump(_EITHER, write_form(asked))) if asked.refusal else None
        return lambda state: _Grammar(form, either, self._vocabulary, state)

    def _compile(self, grammar: str) -> LLMatcher:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise SafeDraftError(f"structured_outputs: {_explain(matcher)}")
        return matcher


def is_refusal_of_json(text: str) -> bool:
    """Whether a reply that had to be JSON or a refusal is, or begins as, a refusal."""
    begun = text.lstrip()
    return bool(begun) and begun[0] not in _JSON_BEGINNINGS


def write_form(asked: StructuredOutputs) -> dict[str, Any]:
    """The grammar of what was asked for, in llguidance's JSON format."""
    return {"name": _FORM, **_write(asked)}


def schema_of(asked: StructuredOutputs) -> Mapping[str, Any]:
    """The JSON schema of a form that is JSON."""
    return {"type": "object"} if asked.json_schema is None else asked.json_schema


def write_json(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema as llguidance takes it, with little white space in the values."""
    return {**schema, "x-guidance": {"whitespace_pattern": _WHITESPACE}}


def texts_of(asked: StructuredOutputs) -> str:
    """The texts that a form can force into a reply: names, constants, patterns; one a line."""
    if asked.json_schema is not None:
        return "\n".join(dict.fromkeys(_find_texts(asked.json_schema)))
    return asked.regex or asked.grammar or "\n".join(asked.choice or ())


def _find_texts(schema: Any) -> Iterator[str]:
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, Mapping):
            waiting += [
                value
                for name, value in part.items()
                if not (isinstance(value, str) and name in _NOT_WRITTEN)
            ]
            names = [part.get(name) for name in ("properties", "patternProperties")]
            waiting += [name for found in names if isinstance(found, Mapping) for name in found]
        elif isinstance(part, Sequence):
            waiting += part


def _write(asked: StructuredOutputs) -> dict[str, Any]:
    if asked.is_json:
        return {"json_schema": write_json(schema_of(asked))}
    if asked.regex is not None:
        return {"lark_grammar": f"start: /{_escape_slashes(asked.regex)}/"}
    if asked.choice is not None:
        return {"lark_grammar": "start: " + " | ".join(map(json.dumps, asked.choice))}
    return {"lark_grammar": asked.grammar}


def _dump(*grammars: Mapping[str, Any]) -> str:
    return json.dumps({"grammars": grammars})


def _explain(matcher: LLMatcher) -> str:
    """The message of llguidance's error, in one line without the grammar."""
    text = matcher.get_error().partition("<state>")[0]
    return " ".join(text.split())[:300]


def _cannot_follow(matcher: LLMatcher) -> FormError:
    return FormError(f"the reply cannot follow its form further: {_explain(matcher)}")


def _escape(text: str) -> str:
    return _escape_slashes(re.escape(text).replace(r"\ ", " "))


def _escape_slashes(expression: str) -> str:
    """A regular expression as it stands between slashes."""
    return re.sub(r"\\.|/", lambda found: r"\/" if found[0] == "/" else found[0], expression)


_BEGINNINGS = "|".join(map(_escape, (*OPENINGS, *LANGUAGES)))
_EITHER = {"lark_grammar": f"start: @{_FORM} | REFUSAL\nREFUSAL: /({_BEGINNINGS})(.|\\n)*/"}


class _Grammar:
    """The grammar of one reply: a ``Constraint``.

    Args:
        form: the requested form.
        either: the form or a refusal; None if the reply may not be a refusal.
        vocabulary: V.
        state: says whether the request is taken to be harmless.
    """

    def __init__(
        self, form: LLMatcher, either: LLMatcher | None, vocabulary: int, state: State
    ) -> None:
        self._matcher, self._vocabulary = (either or form).deep_copy(), vocabulary
        self._form = form.deep_copy() if either else None  # at the first position
        self._state = state
        self._found: dict[tuple[int, ...], Tensor] = {}

    def apply(self, drafts: Sequence[int], logits: Tensor) -> Tensor:
        """See ``Constraint``.

        A reply may begin as a refusal unless the request is taken to be harmless. A model can begin
        one only if it would do so without a grammar: otherwise a request that does not ask for
        the form would end in a refusal, the only permitted text outside of the form.
        """
        return logits + self._bias(tuple(drafts), logits).to(logits.device)

    def _bias(self, key: tuple[int, ...], logits: Tensor) -> Tensor:
        if key not in self._found:
            self._found[key] = forbid(self._look_ahead(key))
        allowed = self._found[key]
        if key or self._form is None:
            return allowed
        form, best = self._read_mask(self._form), int(logits.argmax())
        refuses = bool(allowed[best] == 0) and not bool(form[best]) and not self._state.harmless
        return allowed if refuses else allowed.masked_fill(~form & (allowed == 0), UNLIKELY)

    def decide(self, token: int) -> None:
        """See ``Constraint``."""
        self._found, self._form = {}, None
        if not self._matcher.consume_token(token):
            raise _cannot_follow(self._matcher)

    def _look_ahead(self, drafts: Sequence[int]) -> Tensor:
        ahead = self._matcher.deep_copy()
        for token in drafts:
            ahead.consume_token(token)
        return self._read_mask(ahead)

    def _read_mask(self, matcher: LLMatcher) -> Tensor:
        found = matcher.compute_bitmask()
        if matcher.is_error():  # its mask would end the reply
            raise _cannot_follow(matcher)
        bits = torch.frombuffer(bytearray(found), dtype=torch.int32)
        return unpack_bits(bits, self._vocabulary)
