"""Parameters that shift the logits of both models, and those that the operator has to allow."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, StringConstraints

from safedraft.core.config import Bias, Penalty, Repetition
from safedraft.server.neutral import Body

MAX_BIASES = 1024
"""Number of tokens of one ``logit_bias``."""


def _require_few(biases: Any) -> Any:
    if isinstance(biases, dict) and len(biases) > MAX_BIASES:
        raise ValueError(f"at most {MAX_BIASES} tokens are allowed")
    return biases


TokenId = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,8})$")]


class ShiftParameters(Body):
    """Penalties on tokens that occurred, and biases of tokens."""

    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Repetition | None = None
    """An extension, as in vLLM; refused unless the operator allows it, because it also penalizes
    the tokens of the prompt, where a client may put the words of a refusal."""
    logit_bias: Annotated[dict[TokenId, Bias], BeforeValidator(_require_few)] | None = None
    """Refused unless the operator allows it: it can forbid the words of a refusal."""

    @property
    def shifts(self) -> dict[str, Any]:
        """The sampling parameters of these names."""
        return {
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "logit_bias": {int(id): bias for id, bias in (self.logit_bias or {}).items()},
        }

    @property
    def chosen_shift(self) -> str | None:
        """The parameter by which the client shifts the logits of tokens of its choice, if any."""
        if self.logit_bias:
            return "logit_bias"
        return None if self.repetition_penalty in (None, 1) else "repetition_penalty"
