"""The outcome of a check, which all checks of a pair return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    name: str
    status: Status
    detail: str
    options: tuple[str, ...] = ()
    """Words of a command line that would end a warning."""
