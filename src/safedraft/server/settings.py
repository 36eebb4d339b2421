"""The operator's settings: permissions, and limits on everything that a client can make large."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from safedraft.core.config import Positive, SamplingParams
from safedraft.core.errors import SafeDraftError

API_KEY = "SAFEDRAFT_API_KEY"
"""Environment variable that holds the API key of the clients."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of this machine, the only ones accepted without an API key: a website can make its own name
resolve to this machine's address."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Limits(_Frozen):
    """Limits that are checked before any work is done for a request."""

    body_bytes: Positive = 1 << 20
    """Size of a request's body; a larger one is answered with status 413."""
    body_seconds: Seconds = 20
    """Time within which a body must arrive; a later one is answered with status 408."""
    messages: Positive = 256
    """Messages of one conversation."""
    new_tokens: Positive = 2048
    """Tokens of one reply; also the default of a request, as far as the context has room."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 2.0
    """Temperature of sampled replies; a higher one is lowered to it. Sampling lets more attacks
    through than greedy decoding."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Top-p of sampled replies; a higher one, or none, is lowered to it."""
    schema_bytes: Positive = 1 << 15
    """Size of the JSON schema of a request."""
    stop_strings: Positive = 16
    """Stop strings of one request."""
    stop_characters: Positive = 256
    """Length of one stop string."""
    replies: Positive = 8
    """Replies to one request: ``n`` times the number of prompts."""
    active: Positive = 4
    """Replies that are decoded together; each holds the caches of both models."""
    waiting: Annotated[int, Field(ge=0, strict=True)] = 32
    """Replies that wait in the queue; further ones are answered with status 429."""
    request_seconds: Seconds = 600
    """Time within which a reply must be finished, including its time in the queue."""
    grace_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30
    """Time that replies have to finish after the server is asked to stop."""

    def cap(self, sampling: SamplingParams) -> SamplingParams:
        """Lower a temperature and a top-p that are above these limits to them."""
        capped = {
            name: min(getattr(sampling, name), getattr(self, name))
            for name in ("temperature", "top_p")
        }
        return sampling.model_copy(update=capped)


class ServerSettings(_Frozen):
    """Settings of one server. Nothing that weakens the defense is on by default."""

    name: str
    """Name of the model for clients."""
    api_key: SecretStr | None = None
    """Required of every request except ``/health`` and the playground's files; without a key only
    this machine is served."""
    allow_prefill: bool = False
    """Whether a conversation may end with an assistant message, which the reply continues."""
    allow_completions: bool = False
    """Whether ``/v1/completions`` continues raw text, without a chat template."""
    allow_telemetry: bool = False
    """Whether responses may report matches and schemes, from which attackers can learn."""
    requests_may_set_constants: bool = False
    """Whether a request may set the constants, of which strengths of 0 turn the defense off, choose
    the rule, switch thinking on or off, and shift the logits of tokens that it chooses, a refusal's
    among them (``logit_bias``, and ``repetition_penalty`` by way of the prompt)."""
    guard_header: bool = False
    """Whether responses have the header ``X-SafeDraft-Guarded``, for an operator's own proxy."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of web pages whose scripts may call the server (CORS); ``*`` is any."""
    playground: bool = False
    """Whether ``/playground`` is served, a page that shows what telemetry reports."""
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _require_telemetry(self) -> Self:
        if self.playground and not self.allow_telemetry:
            raise ValueError("playground shows telemetry: allow it too (allow_telemetry=True)")
        return self


PLAYGROUND: dict[str, bool] = {
    "playground": True,
    "allow_telemetry": True,
    "allow_prefill": True,
    "requests_may_set_constants": True,
}
"""The settings of a server whose playground offers everything that the page can show."""


def require_safe(host: str, key: object) -> None:
    """Refuse to serve other machines without an API key.

    Raises:
        SafeDraftError: ``host`` is reachable from other machines, and there is no API key.
    """
    if host not in LOOPBACK and not key:
        raise SafeDraftError(
            f"--host {host} lets other machines in: set {API_KEY}, which clients then have to give"
        )
