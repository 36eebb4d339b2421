"""The operator's settings for vLLM's processes, which receive them as an environment variable."""

from __future__ import annotations

import os
from typing import Self

from pydantic import BaseModel, ConfigDict

_VARIABLE = "SAFEDRAFT_OPERATOR"


class Operator(BaseModel):
    """The operator's settings for the replies of vLLM's server."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Name of the model for clients."""
    guarded: bool
    """Whether the draft has a safety adapter."""
    guard_header: bool = False
    """Whether responses have the header ``X-SafeDraft-Guarded``."""

    @property
    def header(self) -> tuple[bytes, bytes] | None:
        """The header ``X-SafeDraft-Guarded`` of every reply; None if ``guard_header`` is off."""
        if not self.guard_header:
            return None
        return b"x-safedraft-guarded", str(self.guarded).lower().encode()

    def put_in_environment(self) -> None:
        """Pass the settings to this process's children."""
        os.environ[_VARIABLE] = self.model_dump_json()

    @classmethod
    def from_environment(cls) -> Self:
        """The settings that the process was started with."""
        return cls.model_validate_json(os.environ[_VARIABLE])
