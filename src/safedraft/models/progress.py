"""Progress reports of long work, such as loading and training, and how they are shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console, Group

ReportProgress: TypeAlias = Callable[[str, int, int], None]
"""Progress callback: called with the stage in words, the amount done, and the total (0: unknown).

Both amounts are in bytes while a model is fetched."""

FACT = -1
"""The total of a message, such as why an engine was chosen: unlike a stage, it stays visible."""

_SPEED_PERIOD = 1800.0
"""Seconds over which the speed is estimated; a step of training can take minutes."""


def silent(stage: str, done: int, total: int) -> None:
    """Ignore all progress."""


class ProgressDisplay(Protocol):
    """Shows the stages of a command, one after the other."""

    def loading(self, stage: str, done: int, total: int) -> None:
        """Show a stage of loading, with its bytes; it is of no interest once it is done."""

    def counting(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show a stage with its count of replies or steps, and a note such as the losses."""


@contextmanager
def show_stages(*, lines: bool = True) -> Iterator[ProgressDisplay]:
    """Show progress on standard error: one bar on a terminal or in a notebook, lines elsewhere.

    Args:
        lines: whether to print lines where that is neither a terminal nor a notebook.
    """
    from rich.console import Console

    # The stream is bound now: conversion redirects sys.stderr to keep libraries quiet.
    console = Console(file=sys.stderr, highlight=False)
    if console.is_interactive or console.is_jupyter:
        bar = _Bar(console)
        with bar.live:
            try:
                yield bar
            finally:
                bar.end_stage()
    else:
        console.quiet = not lines
        yield _Lines(console)


@contextmanager
def show_progress(*, lines: bool = True) -> Iterator[ReportProgress]:
    """Show the stages of loading as ``show_stages`` does."""
    with show_stages(lines=lines) as display:
        yield display.loading


class _Bar:
    """The bar of the present stage; a counted stage leaves a line when it ends."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        self._console = console
        # The stage is the only column that wraps, so that the others are always visible.
        stage = TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold"))
        amount = TextColumn("{task.fields[amount]}")
        self._progress = Progress(
            *(stage, BarColumn(bar_width=20), amount, TimeRemainingColumn()),
            console=console,
            speed_estimate_period=_SPEED_PERIOD,
        )
        self._line = self._note = ""
        self.live = Live(
            self,
            console=console,
            refresh_per_second=10,
            transient=True,
            redirect_stdout=False,  # it is for results
        )

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        note = [Text(self._note, "dim", no_wrap=True, overflow="ellipsis")] if self._note else []
        return Group(self._progress, *note)

    def loading(self, stage: str, done: int, total: int) -> None:
        from rich.filesize import decimal

        if total == FACT:
            self._console.print(stage, markup=False)
            return
        amount = f"{decimal(done)} of {decimal(total)}" if total else ""
        self._update(stage, done, total, amount)

    def counting(self, stage: str, done: int, total: int, note: str = "") -> None:
        self._update(stage, done, total, f"{done}/{total}")
        self._line, self._note = _format_count(stage, done, total, note), note
        if done == total:
            self.end_stage()

    def end_stage(self) -> None:
        """Remove the bar, and print the line of a counted stage."""
        line, self._line, self._note = self._line, "", ""
        for row in self._progress.task_ids:
            self._progress.remove_task(row)
        if line:
            self._console.print(line, markup=False)

    def _update(self, stage: str, done: int, total: int, amount: str) -> None:
        row = next(iter(self._progress.tasks), None)
        if row is None or row.description != stage or done < row.completed:
            self.end_stage()
            self._progress.add_task(stage, total=None, amount="")
        row = self._progress.tasks[0]
        self._progress.update(row.id, completed=done, total=total or None, amount=amount)


class _Lines:
    """A line for each stage of loading, and some for each counted stage, the last at its end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._loaded: set[str] = set()
        self._tenth = "", 0

    def loading(self, stage: str, done: int, total: int) -> None:
        if stage not in self._loaded:
            self._loaded.add(stage)
            self._print(stage)

    def counting(self, stage: str, done: int, total: int, note: str = "") -> None:
        tenth = stage, 10 * done // max(total, 1)
        if tenth != self._tenth:
            self._tenth = tenth
            self._print(_format_count(stage, done, total, note))

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False)


def _format_count(stage: str, done: int, total: int, note: str) -> str:
    return f"{stage} {done}/{total}  {note}".rstrip()
