"""What the operator allows, and the bounds of everything that a client can make large."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from safedraft.core.config import Positive
from safedraft.core.errors import SafeDraftError

API_KEY = "SAFEDRAFT_API_KEY"
"""The environment variable with the key that clients have to give."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of this machine. Without an API key no other is answered to, since a page on the internet
can give its own name this machine's address."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Limits(_Frozen):
    """Bounds, each checked before any work is done for a request."""

    body_bytes: Positive = 1 << 20
    """Of a request's body; more is a 413."""
    body_seconds: Seconds = 20
    """In which a body has to arrive; later is a 408."""
    messages: Positive = 256
    """In one conversation."""
    new_tokens: Positive = 2048
    """In one reply; also what a request gets that names none, as far as the context has room."""
    stop_strings: Positive = 16
    """In one request."""
    stop_characters: Positive = 256
    """In one stop string."""
    replies: Positive = 8
    """To one request: ``n``, times its prompts."""
    active: Positive = 4
    """Replies that are decoded in turns; each holds both models' caches."""
    waiting: Annotated[int, Field(ge=0, strict=True)] = 32
    """Replies in line behind them; more are a 429."""
    request_seconds: Seconds = 600
    """In which a reply has to be finished, its wait included."""
    grace_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30
    """In which replies may finish once the server is asked to stop."""


class ServerSettings(_Frozen):
    """The operator's side of the server; nothing that weakens the defense is on by default."""

    name: str
    """The model's name for clients."""
    api_key: SecretStr | None = None
    """Asked of every request but ``/health``; without one the server is for this machine alone."""
    allow_prefill: bool = False
    """Whether a conversation may end in an assistant turn, which the reply then continues."""
    allow_completions: bool = False
    """Whether ``/v1/completions`` is there: raw text without a chat template."""
    allow_telemetry: bool = False
    """Whether replies may tell matches and schemes: an attacker learns what the switch sees."""
    requests_may_set_constants: bool = False
    """Whether a request may have its own constants; with strengths of 0 that is no defense."""
    playground: bool = False
    """Whether the page at ``/playground`` is there; it tells all that telemetry would."""
    limits: Limits = Limits()


def require_safe(host: str, key: object) -> None:
    """Refuse to be reached from elsewhere without a key.

    Raises:
        SafeDraftError: ``host`` is not this machine's own, and there is no API key.
    """
    if host not in LOOPBACK and not key:
        raise SafeDraftError(
            f"--host {host} lets other machines in: set {API_KEY}, which clients then have to give"
        )
