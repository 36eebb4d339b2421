"""``NAME=VALUE`` as it is written in options and specifications."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NoReturn

from safedraft.core.errors import SafeDraftError


def parse_assignment(
    place: str,
    text: str,
    *,
    names: Collection[str] = (),
    form: str = "NAME=VALUE",
    separator: str = "=",
) -> tuple[str, str]:
    """Split ``NAME=VALUE`` into its two parts, neither of which is empty.

    Args:
        place: the option or specification that holds the text, for the error message.
        text: the assignment.
        names: the names that are allowed; empty allows every name.
        form: form of the assignment, for the error message.
        separator: the text between name and value.

    Raises:
        SafeDraftError: the text does not have this form, or its name is not allowed.
    """
    name, _, value = text.partition(separator)
    if not (name and value) or (names and name not in names):
        raise invalid_assignment(place, text, names=names, form=form)
    return name, value


def parse_assignments(
    place: str,
    texts: Iterable[str] | None,
    *,
    names: Collection[str] = (),
    form: str = "NAME=VALUE",
    separator: str = "=",
) -> dict[str, str]:
    """Split the texts of an option that may be given again into values by name.

    Raises:
        SafeDraftError: as ``parse_assignment``; or a name has two values.
    """
    values: dict[str, str] = {}
    for text in texts or ():
        name, value = parse_assignment(place, text, names=names, form=form, separator=separator)
        if name in values:
            refuse_repeated(f"{place} {name}")
        values[name] = value
    return values


def split_assignments(place: str, text: str, *, names: Collection[str] = ()) -> dict[str, str]:
    """Split ``NAME=VALUE,…``, which may be empty, into values by name.

    Raises:
        SafeDraftError: as ``parse_assignments``.
    """
    return parse_assignments(place, text.split(",") if text else (), names=names)


def refuse_repeated(what: str) -> NoReturn:
    """Refuse that an option, or a name in one, has more than one value.

    Raises:
        SafeDraftError: always.
    """
    raise SafeDraftError(f"{what} is given twice: leave one of them out")


def parse_value(text: str) -> bool | int | float | str:
    """Read a value as the command line writes it: true, false, a number, or text."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def invalid_assignment(
    place: str, text: str, *, names: Collection[str] = (), form: str = "NAME=VALUE"
) -> SafeDraftError:
    """Return the error that says how an assignment is written and which names it may have."""
    choice = f" with one of {', '.join(names)}" if names else ""
    return SafeDraftError(f"{place} {text}: write {form}{choice}")
