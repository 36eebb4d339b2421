"""Excludes everything that touches minors from all sources.

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
    r"grooming|incest(?:uous)?|"
    r"(?:years?|yrs?)[ -]*olds?|months of age|\d+ ?y/?o"
)
_TOUCHES = re.compile(rf"\b(?:{_WORDS})\b", re.IGNORECASE)


def touches_minors(text: str) -> bool:
    """Whether a text mentions minors, or places and words related to them."""
    return _TOUCHES.search(text.replace("_", " ")) is not None
