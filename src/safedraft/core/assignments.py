"""``NAME=VALUE`` as it is written in options and specifications."""

from __future__ import annotations

from collections.abc import Collection

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
        form: how the assignment is written, for the error message.
        separator: the text between name and value.

    Raises:
        SafeDraftError: the text does not have this form, or its name is not allowed.
    """
    name, _, value = text.partition(separator)
    if not (name and value) or (names and name not in names):
        raise invalid_assignment(place, text, names=names, form=form)
    return name, value


def parse_assignments(place: str, text: str, *, names: Collection[str] = ()) -> dict[str, str]:
    """Split ``NAME=VALUE,…``, which may be empty, into values by name.

    Raises:
        SafeDraftError: as ``parse_assignment``.
    """
    parts = text.split(",") if text else ()
    return dict(parse_assignment(place, part, names=names) for part in parts)


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
