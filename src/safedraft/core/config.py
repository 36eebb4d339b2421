"""Every constant of the method and of sampling, with its symbol in the paper (arXiv 2508.17739)."""

from __future__ import annotations

import secrets
from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from safedraft.core.errors import PromptTooLong, SafeDraftError


class Scheme(StrEnum):
    """Which sample space a position is decided in (Section 4.2)."""

    INTERSECTION = "intersection"
    UNION = "union"


Positive = Annotated[int, Field(ge=1, strict=True)]
Strength = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

OF_SPEED = frozenset({"draft_tokens", "draft_confidence", "draft_growth"})
"""Constants that change the speed, never a token."""


class _Frozen(BaseModel):
    """Immutable, validated, and no option is accepted that does not exist."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SSDConfig(_Frozen):
    """The constants of Speculative Safety-Aware Decoding; the defaults are the published ones.

    Raises ``pydantic.ValidationError`` (a ``ValueError``) for values outside their range.
    """

    sample_space_size: Positive = 10
    """c: how many tokens the models must have in common (intersection), or give each (union)."""

    kappa: Positive = 1
    """κ: intersection keeps the target's own word unless one of its κ best tokens is common."""

    alpha_intersection: Strength = 0.3
    """α_I: weight of the draft in the intersection scheme; may exceed 1."""

    alpha_union: Strength = 0.8
    """α_U: weight of the draft in the union scheme; may exceed 1."""

    alpha_min: Strength = 0.3
    """Least α_I once a bin has left the scheme in intersection, even where it began with less."""

    alpha_decay: Strength = 0.15
    """How much α_I falls each bin that leaves the scheme in intersection."""

    bin_size: Positive = 7
    """b: positions over which one match ratio β is taken."""

    threshold: Share = 0.6
    """β below it means union."""

    threshold_decay: Share = 0.1
    """How much the threshold falls each bin that leaves the scheme unchanged."""

    initial_scheme: Scheme = Scheme.INTERSECTION
    """Where decoding starts; the paper starts in intersection."""

    prefill_scheme: Scheme | None = None
    """Where it starts if the assistant's turn has begun already, as in a prefilled answer; without
    it, and in the paper, as ever."""

    union_bins: Positive = 1
    """Bins that union lasts at the least; the paper: 1. A refusal matches, since it is the draft's
    own, and one bin of it leads back to intersection, where the target may take its word back."""

    draft_tokens: Positive = 3
    """T: most tokens drafted a block. It and those below change the speed, never a token."""

    draft_confidence: Share = 0.0
    """A drafted token less likely than this ends the draft."""

    draft_growth: Strength = 0.0
    """A block drafts at most this many times the tokens that the last one decided; 0: up to T at
    any time. Where the models disagree long drafts are in vain."""

    def draft_length(self, decided: int) -> int:
        """Most tokens to draft behind a block that decided so many; 0 is no block yet."""
        if not decided or not self.draft_growth:
            return self.draft_tokens
        return max(1, min(self.draft_tokens, int(decided * self.draft_growth)))

    def for_turn(self, *, begun: bool | None) -> Self:
        """The constants of one request: its ``initial_scheme`` is where it starts.

        Args:
            begun: whether the assistant's turn has begun already; None if nobody knows, because
                token ids are all there is.

        Raises:
            SafeDraftError: nobody knows, and it makes a difference.
        """
        if self.prefill_scheme is None:
            return self
        if begun is None and self.prefill_scheme != self.initial_scheme:
            raise SafeDraftError(
                "prefill_scheme: nothing here tells whether the assistant's turn has begun: set "
                f"initial_scheme to {self.prefill_scheme} too"
            )
        first = self.prefill_scheme if begun else self.initial_scheme
        return self.model_copy(update={"initial_scheme": first, "prefill_scheme": None})


class SamplingParams(_Frozen):
    """How a token is taken from the composite distribution.

    Temperature divides the logits of both models; ``top_k`` and ``top_p`` cut the composite.
    Raises ``pydantic.ValidationError`` (a ``ValueError``) for values outside their range.
    """

    max_new_tokens: Positive = 512
    """Most tokens in a reply."""

    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0
    """0 is greedy; otherwise at least 0.01."""

    top_k: Annotated[int, Field(ge=0, strict=True)] = 0
    """Keep the k most likely tokens of the composite; 0 keeps all."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Keep the fewest most likely tokens that reach this share of the composite."""

    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] | None = None
    """Makes a sampled reply repeatable; drawn and reported when not given."""

    stop: tuple[str, ...] = ()
    """Strings that end the reply; they are not part of it."""

    @field_validator("temperature")
    @classmethod
    def _not_almost_greedy(cls, value: float) -> float:
        if 0 < value < 0.01:
            raise ValueError("must be 0 (greedy) or at least 0.01")
        return value

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0

    def fitted(self, prompt_tokens: int, context_length: int) -> SamplingParams:
        """The same with a seed, and with no more new tokens than there is room for.

        Raises:
            PromptTooLong: there is room for none.
        """
        room = context_length - prompt_tokens
        if room < 1:
            raise PromptTooLong(prompt_tokens, context_length)
        seed = self.seed if self.seed is not None else secrets.randbits(63)
        limit = min(self.max_new_tokens, room)
        return self.model_copy(update={"max_new_tokens": limit, "seed": seed})
