"""A naive Bayes classifier of tokens and pairs of tokens, which knows a request's wording alone.

The probe has to be better than this, or it has learned words and not harm ("False Sense of
Security", arXiv 2509.03888).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

Gram = tuple[int, ...]


class NgramClassifier:
    """Log odds of harm from the tokens of a prompt, with add-one smoothing.

    Args:
        prompts: token ids of each training prompt.
        harmful: whether each is harmful.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], harmful: Sequence[bool]) -> None:
        counts: dict[bool, Counter[Gram]] = {True: Counter(), False: Counter()}
        for ids, flag in zip(prompts, harmful, strict=True):
            counts[flag].update(_list_grams(ids))
        known = counts[True].keys() | counts[False].keys()
        totals = {flag: counts[flag].total() + len(known) for flag in counts}
        self._odds = {
            gram: math.log((counts[True][gram] + 1) / totals[True])
            - math.log((counts[False][gram] + 1) / totals[False])
            for gram in known
        }

    def score(self, ids: Sequence[int]) -> float:
        """The log odds of a prompt but for a constant; grams that are unknown count nothing."""
        return sum(self._odds.get(gram, 0.0) for gram in _list_grams(ids))


def _list_grams(ids: Sequence[int]) -> Iterator[Gram]:
    yield from ((one,) for one in ids)
    yield from pairwise(ids)
