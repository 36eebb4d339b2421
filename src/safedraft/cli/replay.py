"""``safedraft replay``: compare tokens with recordings of the reference implementation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safedraft.cli.models import PAIR_ARGUMENT, ModelChoice, choose_models
from safedraft.core.counts import format_count
from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from safedraft.core.config import DraftingConfig
    from safedraft.pair import Pair


@choose_models(PAIR_ARGUMENT, dtype="float32")
def replay(
    file: Annotated[Path, typer.Argument(help="A conformance file.")],
    named: Annotated[
        str | None,
        typer.Argument(
            metavar="PAIR",
            help="A registered pair, as with --pair. Default: the folders that the file names.",
        ),
    ] = None,
    *,
    models: ModelChoice,
) -> None:
    """Decode every case of a conformance file and compare ids, schemes and strengths.

    Without a pair or model options, the models are the folders that the file names, next to it.
    Folders need no tokenizer. With --set, only how tokens are drafted can be changed: no token
    depends on it. The exit code is 1 unless all cases are identical.

    [dim]safedraft replay near.json --set draft_tokens=8[/]
    """
    from safedraft.cli.options import constants
    from safedraft.cli.recording import read_recording, replay_cases
    from safedraft.core.config import DraftingConfig
    from safedraft.engines.base import Capability

    recording, models = read_recording(file), models.name_pair(named)
    if models.pair is None and models.target is None and models.draft is None:
        target, draft = (_find_folder(file, name) for name in (recording.target, recording.draft))
        models = replace(models, target=target, draft=draft)
    drafting = DraftingConfig(**constants(models.settings, DraftingConfig))
    pair = replace(_load(models, drafting), end_tokens=recording.end_tokens)
    cases = dict(enumerate(recording.cases, start=1))
    if Capability.TWO_PROMPTS not in pair.engine.capabilities:
        cases = {at: case for at, case in cases.items() if case.target_prompt == case.draft_prompt}
    identical = 0
    differences = replay_cases(pair, list(cases.values()), drafting)
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


def _load(models: ModelChoice, drafting: DraftingConfig) -> Pair:
    """Load the pair without system prompts, since the cases contain prompts as token ids."""
    from safedraft.core.config import SSDConfig
    from safedraft.models.progress import show_progress
    from safedraft.pair.load import load_spec

    bare = models.spec.model_copy(update={"target_system": None, "draft_system": None})
    with show_progress() as report:
        return load_spec(
            bare,
            config=SSDConfig(**drafting.model_dump(exclude_unset=True)),
            engine=models.engine,
            report=report,
            **models.engine_options,
        )


def _find_folder(file: Path, name: str) -> str:
    folder = (file.parent / name).resolve()
    if not folder.is_dir():
        raise SafeDraftError(f"there is no folder {folder}: name the models by --pair or --target")
    return str(folder)
