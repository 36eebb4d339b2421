"""``safedraft replay``: compare tokens with recordings of the reference implementation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel, Field, FiniteFloat

from safedraft.cli.models import PAIR_ARGUMENT, ModelChoice, choose_models
from safedraft.core.config import Positive, SamplingParams, Scheme, SSDConfig, Strength
from safedraft.core.counts import format_count
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


@choose_models(PAIR_ARGUMENT, "settings", dtype="float32")
def replay(
    file: Annotated[Path, typer.Argument(help="A conformance file.")],
    named: Annotated[
        str | None,
        typer.Argument(
            metavar="PAIR",
            help="A registered pair, as with --pair. Default: the folders that the file names.",
        ),
    ] = None,
    draft_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            help="T, the number of drafted tokens; no token depends on it.",
            rich_help_panel="Method",
        ),
    ] = 3,
    *,
    models: ModelChoice,
) -> None:
    """Decode every case of a conformance file and compare ids, schemes and strengths.

    Without a pair or model options, the models are the folders that the file names, next to it.
    Folders need no tokenizer. The exit code is 1 unless all cases are identical.

    [dim]safedraft replay near.json[/]
    """
    from safedraft.engines.base import Capability

    recording, models = read_recording(file), models.named(named)
    if models.pair is None and models.target is None and models.draft is None:
        target, draft = (_find_folder(file, name) for name in (recording.target, recording.draft))
        models = replace(models, target=target, draft=draft)
    pair = replace(_load(models, draft_tokens), end_tokens=recording.end_tokens)
    cases = dict(enumerate(recording.cases, start=1))
    if Capability.TWO_PROMPTS not in pair.engine.capabilities:
        cases = {at: case for at, case in cases.items() if case.target_prompt == case.draft_prompt}
    identical = 0
    differences = replay_cases(pair, list(cases.values()), draft_tokens)
    for (index, case), difference in zip(cases.items(), differences, strict=True):
        identical += difference is None
        name = f" ({case.name})" if case.name else ""
        outcome = difference or f"identical, {format_count(len(case.output), 'token')}"
        typer.echo(f"case {index}{name}: {outcome}")
    if left := len(recording.cases) - len(cases):
        reason = pair.engine.capabilities.missing[Capability.TWO_PROMPTS]
        typer.echo(f"{format_count(left, 'case')} with two prompts left out: {reason}")
    typer.echo(f"{identical}/{format_count(len(cases), 'case')} identical")
    if identical < len(cases) or not cases:
        raise typer.Exit(1)


def _load(models: ModelChoice, draft_tokens: int) -> Pair:
    """Load the pair without system prompts, since the cases contain prompts as token ids."""
    from safedraft.models.progress import show_progress
    from safedraft.pair.load import load_spec

    bare = models.spec.model_copy(update={"target_system": None, "draft_system": None})
    with show_progress() as report:
        return load_spec(
            bare,
            config=SSDConfig(draft_tokens=draft_tokens),
            engine=models.engine,
            report=report,
            **models.engine_options,
        )


def _find_folder(file: Path, name: str) -> str:
    folder = (file.parent / name).resolve()
    if not folder.is_dir():
        raise SafeDraftError(f"there is no folder {folder}: name the models by --pair or --target")
    return str(folder)


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


def replay_cases(pair: Pair, cases: Sequence[Case], draft_tokens: int) -> list[str | None]:
    """Describe how each generated reply differs from the recorded one; None if it does not."""
    from safedraft.pair import Prompts

    replies = pair.generate_many_ids(
        [Prompts(case.target_prompt, case.draft_prompt) for case in cases],
        sampling=[SamplingParams(max_new_tokens=case.max_new_tokens) for case in cases],
        config=[_config(case, draft_tokens) for case in cases],
        rule="ssd",
    )
    return [describe_difference(case, reply) for case, reply in zip(cases, replies, strict=True)]


def _config(case: Case, draft_tokens: int) -> SSDConfig:
    return SSDConfig(
        alpha_intersection=case.alpha_intersection,
        alpha_union=case.alpha_union,
        draft_tokens=draft_tokens,
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
        return f"differs in length: {format_count(len(ids), 'token')}, expected {len(case.output)}"
    return None
