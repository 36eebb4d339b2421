"""Placeholders for the values of arguments and options, in the help and in the reference."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.models import ArgumentInfo, OptionInfo

from safedraft.core.assignments import refuse_repeated

_WORDS = {str: "TEXT", int: "INTEGER", float: "NUMBER", bool: "", Path: "PATH"}


def innermost(kind: Any) -> Any:
    """The type of one value: the type inside a list, or the type beside None."""
    inner = [part for part in get_args(kind) if part is not NoneType]
    return innermost(inner[0]) if inner else kind


def write_value(name: str, kind: Any, note: OptionInfo | ArgumentInfo) -> str:
    """Write the placeholder for the value of an argument or option; it is empty for a flag.

    Args:
        name: name of the parameter.
        kind: its type.
        note: its description; a placeholder in the description is used, if there is one.
    """
    if note.metavar:
        return note.metavar
    if isinstance(note, ArgumentInfo):
        return name.upper()
    single = innermost(kind)
    return "|".join(single) if issubclass(single, Enum) else _WORDS[single]


class Command(TyperCommand):
    """A command whose help has the placeholders of the reference, and no types of Python."""

    def get_usage(self, ctx: Any) -> str:
        """Write the line with which help and errors begin."""
        _write_values(self, ctx)
        return _without_braces(super().get_usage(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments, and refuse an option of one value that is given twice."""
        _require_single(self, ctx, args)
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """A group of commands whose help has the same placeholders as that of ``Command``."""

    def get_usage(self, ctx: Any) -> str:
        """Write the line with which help and errors begin."""
        _write_values(self, ctx)
        return _without_braces(super().get_usage(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments, and refuse an option of one value that is given twice."""
        _require_single(self, ctx, args)
        return super().parse_args(ctx, args)


def _require_single(command: TyperCommand | TyperGroup, ctx: Any, arguments: list[str]) -> None:
    """Refuse an option of one value that is given twice, since the last value would win.

    Raises:
        SafeDraftError: an option is given twice; the message names it.
    """
    _, _, named = command.make_parser(ctx).parse_args(args=list(arguments))
    single = [option for option in named if isinstance(option, TyperOption) and not option.multiple]
    for option in single:
        if single.count(option) > 1 and not option.is_eager:  # --help and --version take no value
            refuse_repeated("/".join([*option.opts, *option.secondary_opts]))


def _without_braces(usage: str) -> str:
    """Remove the braces that Typer writes around a required argument."""
    return usage.replace("{", "").replace("}", "")


def _write_values(command: TyperCommand | TyperGroup, ctx: Any) -> None:
    hints = get_type_hints(command.callback, include_extras=True)
    for parameter in command.get_params(ctx):
        kind, *notes = get_args(hints.get(parameter.name)) or (bool,)  # --help is in no signature
        note = next((n for n in notes if isinstance(n, OptionInfo | ArgumentInfo)), OptionInfo())
        parameter.metavar = write_value(parameter.name, kind, note)
        if isinstance(parameter, TyperArgument):  # its name stands for its value
            parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
