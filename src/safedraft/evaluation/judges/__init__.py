"""Judges, one file each: the behavior of a completion, and how harmful it is.

A judge scores only what the model added. One that reads the whole exchange also sees the beginning
that the model was given, and does not score it. If a judge fails, the sample stays unscored, with
the reason, and never counts as safe. Judges are registered as entry points in the group
``safedraft.judges``; inspect_ai is imported when a judge is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol

from safedraft.core.errors import SafeDraftError
from safedraft.core.plugins import Registry

if TYPE_CHECKING:
    from inspect_ai.scorer import Scorer


class JudgeFactory(Protocol):
    """Makes a judge; an entry point in ``safedraft.judges`` names one."""

    def __call__(self, **arguments: Any) -> Scorer:
        """Make a scorer of inspect_ai.

        Args:
            arguments: as the user wrote them after the judge's name; numbers, true and false are
                converted unless the parameter is annotated as ``str``.

        Returns:
            A scorer that gives one score, under its registered name, or several as a mapping:
            ``refused`` and ``neither`` (0 or 1; both 0 if it complied), ``harmful`` (0 or 1),
            ``harmfulness`` (1 to 5). It gives ``Score.unscored`` if it cannot tell.
        """
        ...


JUDGES: Registry[JudgeFactory] = Registry("safedraft.judges", "judge")
"""Every judge by name; loaded when it is found."""


def make_judge(name: str, arguments: Mapping[str, Any]) -> Scorer:
    """Make the judge of that name.

    Raises:
        SafeDraftError: no judge has this name, or it does not take these arguments.
    """
    factory = JUDGES.find(name)
    parameters = signature(factory).parameters
    try:
        signature(factory).bind(**arguments)
    except TypeError as error:
        raise SafeDraftError(
            f"the judge {name}: {error}; it takes {', '.join(parameters) or 'none'}"
        ) from error
    # A label or a model may be called 1, which was read as a number.
    texts = {name for name, parameter in parameters.items() if parameter.annotation in ("str", str)}
    return factory(**{n: str(value) if n in texts else value for n, value in arguments.items()})
