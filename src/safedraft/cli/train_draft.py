"""``safedraft train-draft``: give a small model the safety property."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safedraft.cli import options
from safedraft.cli.models import ModelChoice, choose_models
from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_DATA, _TRAINING = "Data", "Training"


@choose_models("adapter", "no_adapter", "engine", "engine_option", "settings")
def train_draft(
    output: Annotated[
        Path, typer.Option(help="The adapter's folder; it must not exist, and appears at the end.")
    ],
    harmful: Annotated[
        list[str] | None,
        typer.Option(
            help="Harmful requests in place of SafeDraft's own: a source's name, or a file "
            "(JSON, JSON lines, or text with one a line); may be given again.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    ordinary: Annotated[
        list[str] | None,
        typer.Option(
            help="Prompts to answer in place of SafeDraft's own, named likewise.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            metavar="ADAPTER",
            help="Go on from this adapter of the draft's, on what it gets wrong: a folder, a hub "
            "id, or one that comes with SafeDraft.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of training.", rich_help_panel=_TRAINING)
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="In place of --steps: passes over the harmful requests.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="r of the LoRA matrices.", rich_help_panel=_TRAINING)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="At its highest.", rich_help_panel=_TRAINING)
    ] = None,
    dense_weight: Annotated[
        float | None,
        typer.Option(
            help="Weight of the labels inside a harmful beginning; 0 for none.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    distil_steps: Annotated[
        int | None,
        typer.Option(
            help="Steps of a second stage that learns the target's distributions.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="NAME=VALUE",
            help="Any other setting of training, e.g. tokens_per_step=2400 (see docs/training.md).",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of the order and all choices.", rich_help_panel=_TRAINING),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that was interrupted.")
    ] = False,
    *,
    models: ModelChoice,
) -> None:
    """Train a small model to refuse harmful requests and to answer others as the target does.

    The result is a LoRA adapter for the draft, with a model card. The data is made here: answers
    are drawn from the target, and kept in the cache. Ctrl-C saves the state; --resume goes on.

    [dim]safedraft train-draft --pair qwen2.5-coder --output my-adapter[/]
    """
    from safedraft.models.progress import show_progress
    from safedraft.training.config import TrainingConfig
    from safedraft.training.run import Plan
    from safedraft.training.run import train_draft as run
    from safedraft.training.train import Stopped

    given = {
        "steps": steps,
        "rank": rank,
        "learning_rate": learning_rate,
        "dense_weight": dense_weight,
        "distil_steps": distil_steps,
        "seed": seed,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    others = options.constants(settings, TrainingConfig)
    if twice := chosen.keys() & others:
        raise SafeDraftError(
            f"--set {min(twice)}: is given as an option too: leave one of them out"
        )
    chosen |= others
    if "steps" in chosen and epochs is not None:
        raise SafeDraftError("give --steps or --epochs, not both")
    plan = Plan(
        spec=replace(models, no_adapter=True).spec,
        output=output.expanduser(),
        config=TrainingConfig.model_validate(chosen),
        epochs=epochs,
        harmful=tuple(harmful or ()),
        ordinary=tuple(ordinary or ()),
        start=start_from,
        resume=resume,
        command=_command(),
        dtype=models.dtype,
        device=models.device,
    )
    with show_progress() as fetching, _Bars() as bars:
        try:
            run(plan, fetching=fetching, drawing=bars.drawing, training=bars.training)
        except (Stopped, KeyboardInterrupt):
            again = " --resume" if plan.folder.is_dir() else ""
            typer.echo(f"interrupted; go on with: {plan.command}{again}", err=True)
            raise typer.Exit(130) from None
    typer.echo(str(plan.output))


def _command() -> str:
    words = [word for word in sys.argv[1:] if word != "--resume"]
    return f"safedraft {shlex.join(words)}"


class _Bars:
    """Progress on standard error: bars on a terminal, a line now and then elsewhere."""

    _EVERY = 10

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress:
            self._progress.stop()

    def drawing(self, stage: str, done: int, total: int) -> None:
        self._tell(stage, done, total, "", always=True)

    def training(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        shown = ("refusal", "dense", "answer")
        losses = "  ".join(f"{name} {figures[name]:.3f}" for name in shown if name in figures)
        line = f"{losses}  {figures['seconds']:.1f} s a step"
        self._tell("training", step, steps, line, always=step % self._EVERY == 0 or step == steps)

    def _tell(self, stage: str, done: int, total: int, note: str, *, always: bool) -> None:
        if not self._console.is_terminal:
            if always:
                self._console.print(f"{stage} {done}/{total}  {note}".rstrip(), markup=False)
            return
        progress = self._progress = self._progress or self._started()
        if stage not in self._tasks:
            self._tasks[stage] = progress.add_task(stage, total=total, note="")
        progress.update(self._tasks[stage], completed=done, total=total, note=note)

    def _started(self) -> Progress:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Remaining(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )
        progress.start()
        return progress
