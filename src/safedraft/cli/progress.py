"""Progress of long work on standard error."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class ProgressBars:
    """Progress on standard error: bars on a terminal, one line per 10 steps elsewhere."""

    _EVERY = 10

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress:
            self._progress.stop()

    def drawing(self, stage: str, done: int, total: int) -> None:
        """Show how much of a stage is done."""
        self._show(stage, done, total, "", always=True)

    def training(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Show a step of training with its losses."""
        shown = ("refusal", "dense", "answer")
        losses = "  ".join(f"{name} {figures[name]:.3f}" for name in shown if name in figures)
        line = f"{losses}  {figures['seconds']:.1f} s a step"
        self._show("training", step, steps, line, always=step % self._EVERY == 0 or step == steps)

    def _show(self, stage: str, done: int, total: int, note: str, *, always: bool) -> None:
        if not self._console.is_terminal:
            if always:
                self._console.print(f"{stage} {done}/{total}  {note}".rstrip(), markup=False)
            return
        progress = self._progress = self._progress or self._start()
        if stage not in self._tasks:
            self._tasks[stage] = progress.add_task(stage, total=total, note="")
        progress.update(self._tasks[stage], completed=done, total=total, note=note)

    def _start(self) -> Progress:
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
