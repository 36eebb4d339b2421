"""Checks whether a reply keeps the instructions that were given with a request.

The kinds of instruction are those of IFEval (Zhou et al., arXiv 2311.07911): each can be checked by
a program. The definitions follow the paper, and the code is SafeDraft's own, because the
checkers of lm-eval need nltk with its data and langdetect. So figures are close to those of IFEval
and not equal to them. A reply counts if it keeps all its instructions, as it is written: the
paper's strict accuracy by prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from inspect_ai.scorer import Score

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.usefulness.language import identify_language
from safedraft.prompts.phrases import is_refusal

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_SENTENCE_END = re.compile(r"[.!?…。！？]+[\"'”’»)*_]*(?=\s|$)|[。！？]")
_BULLET = re.compile(r"^[ \t]*[*•-][ \t]+\S", re.MULTILINE)
_NUMBERED = re.compile(r"^[ \t]*\d+[.)][ \t]+\S", re.MULTILINE)
_TITLE = re.compile(r"<<[^<>\n]*\w[^<>\n]*>>")
_HIGHLIGHT = re.compile(r"(?<!\*)\*{1,2}[^\s*][^*\n]*\*{1,2}(?!\*)")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\](?!\()")
_FENCE = re.compile(r"```\w*\n(?P<inside>.*?)\n?```", re.DOTALL)


class Checker(NamedTuple):
    """One kind of instruction."""

    argument: type
    """Type of its argument; an instruction that is just to be kept has true."""
    is_kept: Callable[[str, Any], bool]
    """Whether a reply, without white space around it, keeps the instruction."""


def _contains(reply: str, keyword: str) -> bool:
    return _count_keyword(reply, keyword) > 0


def _count_keyword(reply: str, keyword: str) -> int:
    """Number of times that a reply has a keyword as whole words, in any case."""
    start = r"(?<!\w)" if keyword[0].isalnum() else ""
    end = r"(?!\w)" if keyword[-1].isalnum() else ""
    return len(re.findall(start + re.escape(keyword) + end, reply, re.IGNORECASE))


def _paragraphs(reply: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", reply) if part.strip()]


def _read_json(reply: str) -> Any:
    """The JSON value that a reply consists of, with or without a code fence; None if it is none."""
    fenced = _FENCE.fullmatch(reply)
    try:
        return json.loads(fenced["inside"] if fenced else reply)
    except ValueError:
        return None


def _has_json_keys(reply: str, keys: list[str]) -> bool:
    value = _read_json(reply)
    return isinstance(value, dict) and set(value) == set(keys)


def _ends_with(reply: str, phrase: str) -> bool:
    """Compare without case, and without quotes, emphasis and a stop after either of the two."""
    after = " \"'”*_.!"
    return reply.casefold().rstrip(after).endswith(phrase.casefold().rstrip(after))


def _is_quoted(reply: str) -> bool:
    return len(reply) > 2 and reply[0] in '"“' and reply[-1] in '"”'


CHECKERS: Mapping[str, Checker] = {
    "max_words": Checker(int, lambda reply, n: len(_WORD.findall(reply)) <= n),
    "min_words": Checker(int, lambda reply, n: len(_WORD.findall(reply)) >= n),
    "sentences": Checker(int, lambda reply, n: len(_SENTENCE_END.findall(reply)) == n),
    "max_sentences": Checker(int, lambda reply, n: len(_SENTENCE_END.findall(reply)) <= n),
    "min_sentences": Checker(int, lambda reply, n: len(_SENTENCE_END.findall(reply)) >= n),
    "paragraphs": Checker(int, lambda reply, n: len(_paragraphs(reply)) == n),
    "lines": Checker(int, lambda reply, n: len(re.findall(r"^.*\S", reply, re.MULTILINE)) == n),
    "bullets": Checker(int, lambda reply, n: len(_BULLET.findall(reply)) == n),
    "numbered": Checker(int, lambda reply, n: len(_NUMBERED.findall(reply)) == n),
    "highlights": Checker(int, lambda reply, n: len(_HIGHLIGHT.findall(reply)) >= n),
    "placeholders": Checker(int, lambda reply, n: len(_PLACEHOLDER.findall(reply)) >= n),
    "include": Checker(list, lambda reply, words: all(_contains(reply, word) for word in words)),
    "include_any": Checker(
        list, lambda reply, words: any(_contains(reply, word) for word in words)
    ),
    "avoid": Checker(list, lambda reply, words: not any(_contains(reply, word) for word in words)),
    "repeat": Checker(
        dict,
        lambda reply, counts: all(_count_keyword(reply, word) >= n for word, n in counts.items()),
    ),
    "lowercase": Checker(bool, lambda reply, _: reply == reply.lower()),
    "uppercase": Checker(bool, lambda reply, _: reply == reply.upper()),
    "no_commas": Checker(bool, lambda reply, _: not re.search("[,，、]", reply)),
    "no_digits": Checker(bool, lambda reply, _: not re.search(r"\d", reply)),
    "question": Checker(bool, lambda reply, _: reply.endswith("?")),
    "quoted": Checker(bool, lambda reply, _: _is_quoted(reply)),
    "title": Checker(bool, lambda reply, _: _TITLE.search(reply) is not None),
    "postscript": Checker(bool, lambda reply, _: re.search(r"^P\.? ?S\b", reply, re.M) is not None),
    "json": Checker(bool, lambda reply, _: isinstance(_read_json(reply), dict | list)),
    "json_keys": Checker(list, _has_json_keys),
    "starts_with": Checker(str, lambda reply, text: reply.casefold().startswith(text.casefold())),
    "ends_with": Checker(str, _ends_with),
    "one_of": Checker(list, lambda reply, answers: reply.rstrip(".").casefold() in answers),
    "language": Checker(str, lambda reply, code: identify_language(reply) == code),
}
"""Kinds of instruction by name. Keywords are whole words in any case; ``repeat`` has the number of
times that each has to occur at least, and the answers of ``one_of`` are in lower case."""


def find_broken(reply: str, instructions: Mapping[str, Any]) -> list[str]:
    """Names of the instructions that a reply does not keep.

    An empty reply and a refusal keep none: each of them has no commas, and is of no use.

    Args:
        reply: the reply; white space around it does not count.
        instructions: argument of each instruction, by its name in ``CHECKERS``.

    Raises:
        SafeDraftError: there is no such instruction, or its argument has another type.
    """
    for name, argument in instructions.items():
        if name not in CHECKERS:
            known = ", ".join(CHECKERS)
            raise SafeDraftError(f"no instruction is called {name!r}; there are {known}")
        expected = CHECKERS[name].argument
        if type(argument) is not expected or argument is False:
            needed = "true" if expected is bool else expected.__name__
            raise SafeDraftError(f"the instruction {name} needs {needed}, not {argument!r}")
    reply = reply.strip()
    if not reply or is_refusal(reply):
        return list(instructions)
    return [
        name
        for name, argument in instructions.items()
        if not CHECKERS[name].is_kept(reply, argument)
    ]


def check_instructions(reply: str, expected: str, truncated: bool) -> Score:
    """Score 1 if a reply keeps all instructions, otherwise 0.

    Args:
        reply: the reply.
        expected: a JSON object of instructions, as in ``find_broken``.
        truncated: ignored: an instruction is kept or it is not.

    Raises:
        SafeDraftError: the instructions are malformed.
    """
    try:
        instructions = json.loads(expected)
    except ValueError:
        instructions = None
    if not isinstance(instructions, dict) or not instructions:
        raise SafeDraftError(
            f'the answer of a sample has to be a JSON object like {{"max_words": 50}}, not '
            f"{expected!r}"
        )
    broken = find_broken(reply, instructions)
    return Score(
        value=int(not broken),
        explanation=f"not kept: {', '.join(broken)}" if broken else "all kept",
        metadata={name: name not in broken for name in instructions},
    )
