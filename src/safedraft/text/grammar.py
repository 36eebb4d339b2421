"""Grammars of replies: which tokens may come next, by llguidance.

A grammar is compiled once for each request. Where the request lets a refusal out, the grammar is
"what was asked for, or a refusal": a model that would refuse may do so, and SSD combines the two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safedraft.core.config import StructuredOutputs
from safedraft.core.constraint import UNLIKELY, Constraint, forbid
from safedraft.core.errors import BrokenModelError, SafeDraftError, first_line
from safedraft.core.extras import require_extra
from safedraft.text.refusals import LANGUAGES, OPENINGS

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from transformers import PreTrainedTokenizerBase

_BITS = torch.arange(32, dtype=torch.int32)
_JSON_BEGINNINGS = '{["-0123456789tfn'  # of a value, after whitespace
_WHITESPACE = r"[ \n]{0,16}"  # in JSON: without a limit, small models write nothing else
_FORM = "form"  # the name of what was asked for, in a grammar that also lets a refusal out


class Grammars:
    """Compiles the grammars of a pair's requests.

    Args:
        tokenizer: the target's.
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

    def compile(self, asked: StructuredOutputs) -> Callable[[], Constraint]:
        """What makes the grammar of each reply to a request.

        Raises:
            SafeDraftError: the schema, expression or grammar is wrong or not supported.
        """
        form = self._match([write_form(asked)])
        either = self._match([_EITHER, write_form(asked)]) if asked.refusal else None
        return lambda: _Grammar(form, either, self._vocabulary)

    def _match(self, grammars: Sequence[Mapping[str, Any]]) -> LLMatcher:
        from llguidance import LLMatcher

        written = json.dumps({"grammars": grammars})
        if problem := LLMatcher.validate_grammar(written, self._tokenizer):
            raise SafeDraftError(f"structured_outputs: {problem.splitlines()[0]}")
        return LLMatcher(self._tokenizer, written, log_level=0)


def is_refusal_of_json(text: str) -> bool:
    """Whether a reply that had to be JSON or a refusal is, or begins as, a refusal."""
    begun = text.lstrip()
    return bool(begun) and begun[0] not in _JSON_BEGINNINGS


def write_form(asked: StructuredOutputs) -> dict[str, Any]:
    """The grammar of what was asked for, in llguidance's JSON format."""
    return {"name": _FORM, **_write(asked)}


def _write(asked: StructuredOutputs) -> dict[str, Any]:
    if asked.is_json:
        schema = {"type": "object"} if asked.json_schema is None else dict(asked.json_schema)
        return {"json_schema": {"x-guidance": {"whitespace_pattern": _WHITESPACE}} | schema}
    if asked.regex is not None:
        return {"lark_grammar": f"start: /{_escape_slashes(asked.regex)}/"}
    if asked.choice is not None:
        return {"lark_grammar": "start: " + " | ".join(map(json.dumps, asked.choice))}
    return {"lark_grammar": asked.grammar}


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
        form: what was asked for.
        either: the same or a refusal; None if a refusal is not let out.
        vocabulary: V.
    """

    def __init__(self, form: LLMatcher, either: LLMatcher | None, vocabulary: int) -> None:
        self._matcher, self._vocabulary = (either or form).deep_copy(), vocabulary
        self._form = form if either else None  # at the first position
        self._found: dict[tuple[int, ...], Tensor] = {}

    def bias(self, drafts: Sequence[int], logits: Tensor) -> Tensor:
        """See ``Constraint``.

        At the first position a model begins a refusal only if that is what it would do without a
        grammar. A request that does not ask for the form would end in a refusal otherwise, as the
        only text that is no form.
        """
        key = tuple(drafts)
        if key not in self._found:
            self._found[key] = forbid(self._look_ahead(key))
        allowed = self._found[key]
        if key or self._form is None:
            return allowed
        form, best = self._read_mask(self._form), int(logits.argmax())
        refuses = bool(allowed[best] == 0) and not bool(form[best])
        return allowed if refuses else allowed.masked_fill(~form & (allowed == 0), UNLIKELY)

    def decide(self, token: int) -> None:
        """See ``Constraint``.

        Raises:
            BrokenModelError: the grammar forbids the token.
        """
        self._found, self._form = {}, None
        if not self._matcher.consume_token(token):
            raise BrokenModelError("a token that the grammar forbids was decided; decoding stopped")

    def _look_ahead(self, drafts: Sequence[int]) -> Tensor:
        ahead = self._matcher.deep_copy()
        for token in drafts:
            ahead.consume_token(token)
        return self._read_mask(ahead)

    def _read_mask(self, matcher: LLMatcher) -> Tensor:
        bits = torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=torch.int32)
        mask = (bits[:, None] >> _BITS & 1).bool().flatten()[: self._vocabulary]
        missing = self._vocabulary - len(mask)
        return torch.nn.functional.pad(mask, (0, missing)) if missing > 0 else mask
