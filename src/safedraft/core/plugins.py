"""Extension points: named objects that installed distributions register as entry points.

Each kind of extension has an entry point group, and SafeDraft registers its own in the same way, in
``pyproject.toml``. A registry reads names from the metadata of installed distributions when it is
first asked; an object is imported when it is found by its name, and not before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar, cast

from safedraft.core.errors import SafeDraftError

T = TypeVar("T")


class Registry(Generic[T]):
    """The extensions of one kind, by name.

    Args:
        group: entry point group, as in ``safedraft.attacks``.
        kind: word for an extension in error messages, as in ``attack``.
    """

    def __init__(self, group: str, kind: str) -> None:
        self.group = group
        self.kind = kind

    def names(self) -> list[str]:
        """All registered names, sorted; nothing is imported."""
        return sorted(self._entries)

    def find(self, name: str) -> T:
        """Import the extension of that name.

        Raises:
            SafeDraftError: no distribution registers the name, two of them do, or the import fails.
        """
        if not self._entries:
            raise SafeDraftError(
                f"no {self.kind} is registered in {self.group}: reinstall safedraft, whose "
                "installed metadata lists its own"
            )
        if name not in self._entries:
            raise unknown_name(self.kind, name, self.names())
        entry, *others = self._entries[name]
        if others:
            both = " and ".join(sorted(map(_distribution, (entry, *others))))
            raise SafeDraftError(
                f"the {self.kind} {name!r} is registered by both {both}: uninstall one of them"
            )
        try:
            return cast(T, entry.load())
        except Exception as error:  # an import can raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise SafeDraftError(
                f"the {self.kind} {name!r} of {_distribution(entry)} cannot be loaded ({reason})"
            ) from error

    @cached_property
    def _entries(self) -> dict[str, list[EntryPoint]]:
        entries: defaultdict[str, list[EntryPoint]] = defaultdict(list)
        for entry in entry_points(group=self.group):
            entries[entry.name].append(entry)
        return dict(entries)


def unknown_name(kind: str, name: str, known: Collection[str]) -> SafeDraftError:
    """An error that suggests the closest known name and lists all of them."""
    return SafeDraftError(f"no {kind} is called {name!r}{suggest(name, known)}")


def suggest(name: str, known: Collection[str]) -> str:
    """The end of an error about an unknown name: the closest known name, then all names."""
    closest = get_close_matches(name, known, n=1)
    question = f" (did you mean {closest[0]!r}?)" if closest else ""
    return f"{question}; known are {', '.join(known)}"


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed distribution"
