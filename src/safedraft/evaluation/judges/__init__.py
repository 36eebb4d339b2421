"""Judges: one file each; each says whether a completion is a refusal, or how harmful it is.

What is judged is what the model added; the beginning it was given is shown to a judge that reads
the exchange, and is no part of what is judged. A judge that fails leaves the sample unscored, with
the reason: it is never counted as safe. inspect_ai is imported when a judge is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from inspect_ai.scorer import Scorer


def _phrases(**arguments: Any) -> Scorer:
    from safedraft.evaluation.judges.phrases import phrases_judge

    return _made("phrases", phrases_judge, arguments)


def _endpoint(**arguments: Any) -> Scorer:
    from safedraft.evaluation.judges.endpoint import endpoint_judge

    return _made("endpoint", endpoint_judge, arguments)


def _classifier(**arguments: Any) -> Scorer:
    from safedraft.evaluation.judges.classifier import classifier_judge

    return _made("classifier", classifier_judge, arguments)


def _made(name: str, make: Callable[..., Scorer], arguments: Mapping[str, Any]) -> Scorer:
    """A judge by its arguments, of which a wrong one is the user's to mend."""
    parameters = signature(make).parameters
    try:
        signature(make).bind(**arguments)
    except TypeError as error:
        raise SafeDraftError(
            f"the judge {name}: {error}; it takes {', '.join(parameters) or 'none'}"
        ) from error
    texts = {name for name, parameter in parameters.items() if parameter.annotation == "str"}
    # A label or a model may be called 1, which was read as a number.
    return make(**{n: str(value) if n in texts else value for n, value in arguments.items()})


JUDGES: dict[str, Callable[..., Scorer]] = {
    "phrases": _phrases,
    "endpoint": _endpoint,
    "classifier": _classifier,
}
"""Each makes a scorer of inspect_ai; its scores are named ``refused``, ``harmfulness`` or
``harmful`` (``endpoint`` gives the first two in one mapping)."""
