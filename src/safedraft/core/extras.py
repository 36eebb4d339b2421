"""Optional libraries, and the extra of SafeDraft that brings each."""

from __future__ import annotations

from importlib.util import find_spec

from safedraft.core.errors import SafeDraftError


def require_extra(what: str, extra: str, *modules: str) -> None:
    """Raise if libraries of an extra are not installed, before any other work.

    Args:
        what: the command or the part that needs them, at the beginning of a sentence.
        extra: the name of the extra in ``pip install 'safedraft[…]'``.
        modules: the libraries, by the names under which they are imported.

    Raises:
        SafeDraftError: one of ``modules`` is missing; the message names it and the extra.
    """
    for module in modules:
        if find_spec(module) is None:
            raise SafeDraftError(f"{what} needs {module}: pip install 'safedraft[{extra}]'")
