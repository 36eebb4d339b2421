"""Excludes everything that touches minors from all sources, and from what is kept of replies.

The list matches whole words, in upper and lower case. It is broad on purpose: a harmless prompt
that mentions a school is excluded as well, and an evaluation does not need it.
"""

from __future__ import annotations

import re

_WORDS = (
    r"child(?:ren|hood|like|porn)?s?|kids?|kiddie|minors?|under-?age[ds]?|juveniles?|"
    r"teen(?:s|age[rd]?s?)?|pre-?teens?|tweens?|adolescen(?:t|ts|ce)|"
    r"bab(?:y|ies)|infants?|newborns?|toddlers?|youths?|youngsters?|youngest|"
    r"girls?|boys?|schoolgirls?|schoolboys?|daughters?|sons?|niece|nephew|"
    r"schools?|high-?schools?|preschools?|kindergartens?|nurser(?:y|ies)|daycares?|playgrounds?|"
    r"students?|pupils?|p(?:a?e)dophil(?:e|es|ia|iac)|pedos?|loli(?:ta)?s?|shota|csam|csem|"
    r"grooming|incest(?:uous)?|snuff|"
    r"(?:years?|yrs?)[ -]*olds?|months of age|\d+ ?y/?o"
)
_SEXUAL = re.compile(
    r"\b(?:sex\w*|porn\w*|nud(?:e|es|ity)|naked|erotic\w*|rap(?:e|ed|es|ing|ist)|molest\w*|"
    r"intercourse|genital\w*|orgasm\w*|masturbat\w*|seduc\w*|fetish\w*|explicit)\b",
    re.IGNORECASE,
)
_TOUCHES = re.compile(rf"\b(?:{_WORDS})\b", re.IGNORECASE)


def touches_minors(text: str) -> bool:
    """Whether a text mentions minors, or places and words related to them."""
    return _TOUCHES.search(text.replace("_", " ")) is not None


def must_not_be_kept(text: str) -> bool:
    """Whether a generated text mentions minors and anything sexual: it is stored nowhere."""
    return touches_minors(text) and _SEXUAL.search(text) is not None
