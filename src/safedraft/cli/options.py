"""Options that several commands share."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from safedraft.core.assignments import parse_assignments
from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from pydantic import BaseModel


_DATA = "Data"
TRAINING_PAGE = 'see the page "Training a draft" of the documentation'


def set_option(text: str, panel: str | None = None) -> Any:
    """The option ``--set NAME=VALUE`` with its help text, in a panel of the command's help."""
    return typer.Option("--set", "-s", metavar="NAME=VALUE", help=text, rich_help_panel=panel)


Set = Annotated[
    list[str] | None,
    set_option(
        "A constant of the method, e.g. alpha_union=2.0 (see: safedraft pairs --constants).",
        "Method",
    ),
]
Harmful = Annotated[
    list[str] | None,
    typer.Option(
        help="Harmful requests that replace SafeDraft's own: a source's name, or a file "
        "(JSON, JSON lines, or text with one per line); may be given again. 'own' keeps "
        "SafeDraft's own beside them.",
        rich_help_panel=_DATA,
    ),
]
Ordinary = Annotated[
    list[str] | None,
    typer.Option(
        help="Ordinary prompts that replace SafeDraft's own, named in the same ways.",
        rich_help_panel=_DATA,
    ),
]
Rule = Annotated[
    str | None,
    typer.Option(
        help="The rule by which tokens are decided, in place of the pair's own: ssd is SSD alone, "
        "target_only the target alone (see the page "
        '"The method, and where it stands in the code" of the documentation).',
    ),
]
System = Annotated[str | None, typer.Option(help="A system prompt for both models.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def require_rule(name: str | None) -> None:
    """Refuse a rule that does not exist, before models are loaded.

    Raises:
        SafeDraftError: no rule has this name; the message lists all rules.
    """
    from safedraft.pair import guards

    if name is not None:
        guards.require_rule(name)


def constants(
    settings: list[str] | None, kind: type[BaseModel], option: str = "--set"
) -> dict[str, Any]:
    """Read ``--set NAME=VALUE``, or another option of that form; values are not validated.

    Raises:
        SafeDraftError: a name is not a field of ``kind``, or has two values.
    """
    fields = kind.model_fields
    changes: dict[str, Any] = {}
    for name, value in parse_assignments(option, settings, names=fields).items():
        whole = fields[name].annotation is int and re.fullmatch("-?[0-9]+", value)
        changes[name] = int(value) if whole else value
    return changes


def require_planned(option: str, suite: str, suites: Sequence[str]) -> None:
    """Raise if an option names a suite that is not run, instead of ignoring it.

    Raises:
        SafeDraftError: ``suite`` is not in ``suites``.
    """
    if suite not in suites:
        raise SafeDraftError(f"{option}: {suite} is not run, only {', '.join(suites)}")


def say(message: str) -> None:
    """Print one line of text on standard error."""
    from rich.console import Console

    Console(stderr=True, highlight=False).print(message, soft_wrap=True, markup=False)


def read_standard_input() -> str:
    """Read all of standard input as text.

    Raises:
        SafeDraftError: standard input is closed.
    """
    if sys.stdin is None:
        raise SafeDraftError("standard input is closed: give the prompt as an argument")
    return sys.stdin.read()


def make_parameter(name: str, default: object, annotation: object) -> inspect.Parameter:
    """A keyword-only parameter, for ``collect``."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def list_parameters(
    kind: type, without: Collection[str], defaults: Mapping[str, Any]
) -> list[inspect.Parameter]:
    """Make a parameter of each field of a dataclass, annotated with its option.

    Args:
        kind: the dataclass.
        without: fields to leave out.
        defaults: defaults that differ from those of the fields.
    """
    types = get_type_hints(kind, include_extras=True)
    return [
        make_parameter(item.name, defaults.get(item.name, item.default), types[item.name])
        for item in fields(kind)
        if item.name not in without
    ]


def collect(
    parameter: str, added: Sequence[inspect.Parameter], make: Callable[..., Any]
) -> Callable[[Callable[..., None]], Any]:
    """Add options to a command, which takes them as one object.

    Args:
        parameter: the command's parameter for the object.
        added: the options.
        make: makes the object of their values, by their names.
    """
    names = [option.name for option in added]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command)
        hints = get_type_hints(command, include_extras=True)
        kept = [
            option.replace(annotation=hints[option.name])
            for option in own.parameters.values()
            if option.name != parameter
        ]

        @wraps(command)
        def run(*arguments: Any, **values: Any) -> None:
            made = make(**{name: values.pop(name) for name in names})
            command(*arguments, **{parameter: made}, **values)

        parameters = [*kept, *added]
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        del run.__wrapped__  # otherwise typer reads its annotations
        return run

    return decorate
