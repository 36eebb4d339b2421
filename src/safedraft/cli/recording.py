"""Recordings of the reference implementation, and how replies differ from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field, FiniteFloat

from safedraft.core.config import (
    DraftingConfig,
    Positive,
    SamplingParams,
    Scheme,
    SSDConfig,
    Strength,
)
from safedraft.core.errors import SafeDraftError, refuse_invalid

if TYPE_CHECKING:
    from safedraft.pair import Pair
    from safedraft.text.results import GenerationResult

_TOLERANCE = 1e-9  # strengths are sums of decimal fractions


class Case(BaseModel):
    """One recorded greedy reply; all constants but the two strengths have their defaults."""

    name: str | None = None
    target_prompt: Annotated[list[int], Field(min_length=1)]
    draft_prompt: Annotated[list[int], Field(min_length=1)]
    alpha_intersection: Strength
    alpha_union: Strength
    max_new_tokens: Positive
    output: list[int]
    steps: list[tuple[Scheme, FiniteFloat, int]]
    """Scheme, strength and token at every position."""


class Recording(BaseModel):
    """A conformance file."""

    target: str
    """A folder next to the file, used if no model is named."""
    draft: str
    eos_token_id: int | list[int] | None = None
    cases: Annotated[list[Case], Field(min_length=1)]

    @property
    def end_tokens(self) -> frozenset[int]:
        """End tokens of the recorded replies."""
        ends = self.eos_token_id
        return frozenset([ends] if isinstance(ends, int) else ends or [])


def read_recording(file: Path) -> Recording:
    """Read a conformance file.

    Raises:
        SafeDraftError: the file cannot be read, or a field is invalid.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SafeDraftError(f"{file} cannot be read: {error.strerror}") from error
    with refuse_invalid(f"{file}: ", whole="the file"):
        return Recording.model_validate_json(content)


def replay_cases(pair: Pair, cases: Sequence[Case], drafting: DraftingConfig) -> list[str | None]:
    """Describe how each generated reply differs from the recorded one; None if it does not."""
    from safedraft.pair import Prompts

    replies = pair.generate_many_ids(
        [Prompts(case.target_prompt, case.draft_prompt) for case in cases],
        sampling=[SamplingParams(max_new_tokens=case.max_new_tokens) for case in cases],
        config=[_config(case, drafting) for case in cases],
        rule="ssd",
    )
    return [describe_difference(case, reply) for case, reply in zip(cases, replies, strict=True)]


def _config(case: Case, drafting: DraftingConfig) -> SSDConfig:
    return SSDConfig(
        alpha_intersection=case.alpha_intersection,
        alpha_union=case.alpha_union,
        **drafting.model_dump(),
    )


def describe_difference(case: Case, reply: GenerationResult) -> str | None:
    """Describe how a reply differs from the recorded one; None if it does not."""
    for at, (token, expected) in enumerate(zip(reply.trace, case.steps, strict=False)):
        scheme, strength, id = expected
        same = (token.scheme, token.id) == (scheme, id)
        if not (same and abs(token.alpha - strength) <= _TOLERANCE):
            actual = f"{token.scheme} {token.alpha:g} token {token.id}"
            return f"differs at {at}: {actual}, expected {scheme} {strength:g} token {id}"
    ids = [token.id for token in reply.trace]
    if len(ids) != len(case.steps) or ids != case.output:
        return f"differs in length: {len(ids)} tokens, expected {len(case.output)}"
    return None
