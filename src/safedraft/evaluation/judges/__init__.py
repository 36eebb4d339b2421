"""Judges: one file each; each says whether a completion is a refusal, or how harmful it is.

What is judged is what the model added; the beginning it was given is shown to a judge that reads
the exchange, and is no part of what is judged. A judge that fails leaves the sample unscored, with
the reason: it is never counted as safe. inspect_ai is imported when a judge is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inspect_ai.scorer import Scorer


def _phrases() -> Scorer:
    from safedraft.evaluation.judges.phrases import phrases_judge

    return phrases_judge()


def _endpoint(**arguments: Any) -> Scorer:
    from safedraft.evaluation.judges.endpoint import endpoint_judge

    return endpoint_judge(**arguments)


def _classifier(**arguments: Any) -> Scorer:
    from safedraft.evaluation.judges.classifier import classifier_judge

    return classifier_judge(**arguments)


JUDGES: dict[str, Callable[..., Scorer]] = {
    "phrases": _phrases,
    "endpoint": _endpoint,
    "classifier": _classifier,
}
"""Each makes a scorer of inspect_ai; its scores are named ``refused``, ``harmfulness`` or
``harmful`` (``endpoint`` gives the first two in one mapping)."""
