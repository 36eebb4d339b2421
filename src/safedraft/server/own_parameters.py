"""Parameters of a request that can weaken the defense, as far as the operator allows them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from safedraft.core.config import SSDConfig
from safedraft.core.errors import SafeDraftError
from safedraft.pair import Pair
from safedraft.pair.guards import require_rule
from safedraft.pair.options import find_constants, read_constants
from safedraft.server.errors import APIError, convert_errors, invalid_value
from safedraft.server.requests import SafeDraftOptions
from safedraft.server.settings import ServerSettings


@dataclass(frozen=True)
class OwnParameters:
    """The parameters of a request that are SafeDraft's own."""

    options: SafeDraftOptions
    pair: Pair
    settings: ServerSettings

    def read_telemetry(self) -> bool:
        """Whether the response reports how each token was chosen.

        Raises:
            APIError: the operator does not allow it.
        """
        wanted = self.options.telemetry
        if wanted and not self.settings.allow_telemetry:
            message = "This server does not report telemetry."
            raise APIError(400, "telemetry_disabled", message, "safedraft.telemetry")
        return wanted

    def read_config(self) -> SSDConfig | None:
        """The constants of the request; None if it keeps those of the pair.

        Raises:
            APIError: the operator does not allow it, or a value is refused.
        """
        changes = self.options.config
        if not changes:
            return None
        if not self.settings.requests_may_set_constants:
            message = "This server does not let requests set the constants of the defense."
            raise APIError(400, "constants_disabled", message, "safedraft.config")
        try:
            config = self.pair.config.replace(**changes)
        except SafeDraftError as error:
            raise invalid_value("safedraft.config", str(error)) from error
        if rule := self.read_rule():
            work = partial(read_constants, find_constants(rule), config, self.pair.config)
            convert_errors(work, "safedraft.config")
        maximum = self.pair.config.draft_tokens
        if config.draft_tokens > maximum:  # all other replies wait while a block is decoded
            raise invalid_value("safedraft.config", f"draft_tokens may be at most {maximum}")
        return config

    def read_rule(self) -> str | None:
        """The rule that decides; None for that of the pair.

        Raises:
            APIError: the operator does not allow it, or there is no such rule.
        """
        rule, name = self.options.rule, "safedraft.rule"
        if rule is None:
            return None
        if not self.settings.requests_may_set_constants:
            message = "This server does not let requests choose the rule that decides."
            raise APIError(400, "rules_disabled", message, name)
        convert_errors(partial(require_rule, rule), name)
        return rule

    def read_shift(self, name: str | None) -> bool:
        """Whether the client shifts the logits of tokens of its choice, by the parameter ``name``.

        Raises:
            APIError: the operator does not allow it.
        """
        if name and not self.settings.requests_may_set_constants:
            message = "This server does not let requests shift the logits of tokens they choose."
            raise APIError(400, "shifts_disabled", message, name)
        return name is not None
