"""Shows how far a run is: a line for each suite under each defense, with the replies so far."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from inspect_ai.hooks import Hooks, SampleEnd, TaskEnd, TaskStart, hooks
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


@dataclass
class _Display:
    """Draws bars on a terminal, and prints a line for each finished task elsewhere."""

    console: Console
    bars: Progress
    rows: dict[str, TaskID] = field(default_factory=dict)
    """Rows of the tasks that run, by the id of their evaluation."""

    def start(self, data: TaskStart) -> None:
        spec = data.spec
        label = (spec.model_args or {}).get("label", spec.model)
        replies = (spec.dataset.samples or 0) * (spec.config.epochs or 1)
        self.rows[data.eval_id] = self.bars.add_task(f"{label} · {spec.task}", total=replies)

    def finish_sample(self, data: SampleEnd) -> None:
        if data.eval_id in self.rows:
            self.bars.advance(self.rows[data.eval_id])

    def finish_task(self, data: TaskEnd) -> None:
        row = self.rows.pop(data.eval_id, None)
        if row is None:
            return
        logged = data.log.results.completed_samples if data.log.results else 0
        self.bars.update(row, completed=logged)
        if not self.console.is_terminal:
            task = self.bars.tasks[row]
            line = f"{task.description}: {logged} of {task.total:.0f} replies"
            self.console.print(f"{line}, {task.elapsed or 0:.0f} s", markup=False, highlight=False)


_displays: list[_Display] = []
"""The display of the run in progress, if there is one."""


@hooks(name="safedraft_progress", description="Progress of safedraft eval.")
class _ProgressHooks(Hooks):
    """Passes what inspect_ai reports on to the display; idle outside of ``show_replies``."""

    def enabled(self) -> bool:
        return bool(_displays)

    async def on_task_start(self, data: TaskStart) -> None:
        for display in _displays:
            display.start(data)

    async def on_sample_end(self, data: SampleEnd) -> None:
        for display in _displays:
            display.finish_sample(data)

    async def on_task_end(self, data: TaskEnd) -> None:
        for display in _displays:
            display.finish_task(data)


@contextmanager
def show_replies() -> Iterator[None]:
    """Show on standard error how many replies of each task there are, until the context ends."""
    console = Console(file=sys.stderr)
    columns = (
        *(TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn()),
        TimeElapsedColumn(),
    )
    bars = Progress(*columns, console=console, disable=not console.is_terminal)
    _displays.append(_Display(console, bars))
    try:
        with bars:
            yield
    finally:
        _displays.pop()
