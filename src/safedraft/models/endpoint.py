"""A model at an OpenAI-compatible endpoint that is asked for one short text at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from safedraft.core.errors import SafeDraftError, first_line
from safedraft.core.extras import require_extra

if TYPE_CHECKING:
    from openai import OpenAI


@dataclass(frozen=True)
class Endpoint:
    """A model of an endpoint, which is asked greedily.

    The key is in the environment variable ``SAFEDRAFT_ROLE_API_KEY``, with the role in capitals;
    servers without keys need none.
    """

    url: str
    """Base URL of the API, as in ``http://localhost:8000/v1``."""
    model: str
    """The model's name at the endpoint."""
    role: str
    """Role of the model, for messages and the name of the key: a guard or a judge."""
    timeout: float = 120.0
    """Seconds for one try."""
    retries: int = 2
    """Number of times that a failed request is repeated."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise SafeDraftError(
                f"the {self.role}'s url {self.url!r} does not begin with http:// or https://"
            )

    @property
    def key_variable(self) -> str:
        """Name of the environment variable that has the key."""
        return f"SAFEDRAFT_{self.role.upper()}_API_KEY"

    def ask(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> str:
        """Return the model's reply to a conversation; empty if it says nothing.

        Args:
            messages: with a ``role`` and a ``content`` each.
            max_tokens: maximum number of tokens of the reply.

        Raises:
            SafeDraftError: no server answers, it refuses the key, or the request fails there.
        """
        client = self._client
        import openai

        turns: Any = [{name: turn[name] for name in ("role", "content")} for turn in messages]
        try:
            with self._explain_no_answer():
                reply = client.chat.completions.create(
                    model=self.model, messages=turns, temperature=0.0, max_tokens=max_tokens
                )
        except openai.OpenAIError as error:
            raise SafeDraftError(
                f"the {self.role} {self.model} at {self.url} failed: {first_line(error)}"
            ) from error
        choices = getattr(reply, "choices", None) or []  # a page of a proxy has none
        return (choices[0].message.content or "") if choices else ""

    def require_reachable(self) -> None:
        """Ask for the list of models, which not every endpoint has; any answer will do.

        Raises:
            SafeDraftError: no server answers within ten seconds, or it refuses the key.
        """
        client = self._client.with_options(max_retries=0, timeout=10)
        import openai

        try:
            with self._explain_no_answer():
                client.models.list()
        except SafeDraftError:
            raise
        except (openai.APIError, ValueError):
            return  # an answer of whatever kind

    @contextmanager
    def _explain_no_answer(self) -> Iterator[None]:
        """Turn a refused key and a missing server into errors that say what to do."""
        import openai

        try:
            yield
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise SafeDraftError(
                f"the {self.role} at {self.url} refuses the key: set {self.key_variable}"
            ) from error
        except openai.APIConnectionError as error:
            raise SafeDraftError(
                f"no {self.role} answers at {self.url} ({first_line(error)}): start it, or fix the "
                "url"
            ) from error

    @cached_property
    def _client(self) -> OpenAI:
        require_extra(f"the {self.role}", "eval", "openai")
        from openai import OpenAI

        return OpenAI(
            base_url=self.url,
            api_key=os.environ.get(self.key_variable) or "none",
            timeout=self.timeout,
            max_retries=self.retries,
        )
