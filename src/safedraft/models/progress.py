"""Progress reports while a model is fetched or generates, and how they are drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console

ReportProgress: TypeAlias = Callable[[str, int, int], None]
"""Progress callback: called with the stage in words, the amount done, and the total (0: unknown).

Both amounts are in bytes while a model is fetched."""


def silent(stage: str, done: int, total: int) -> None:
    """Ignore all progress."""


@contextmanager
def show_progress(*, lines: bool = True) -> Iterator[ReportProgress]:
    """Draw progress bars on standard error.

    Args:
        lines: whether to print one line per stage where that is neither a terminal nor a notebook.
    """
    from rich.console import Console

    # The stream is bound now: conversion redirects sys.stderr to keep libraries quiet.
    console = Console(file=sys.stderr)
    if console.is_terminal or console.is_jupyter:
        with _draw_bars(console) as report:
            yield report
    else:
        yield _print_lines(console) if lines else silent


@contextmanager
def _draw_bars(console: Console) -> Iterator[ReportProgress]:
    from rich.filesize import decimal
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}")
    with Progress(
        *columns, TimeElapsedColumn(), console=console, redirect_stdout=False, redirect_stderr=False
    ) as progress:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for earlier in tasks.values():
                    progress.update(earlier, total=1, completed=1)
                tasks[stage] = progress.add_task(stage, total=None, amount="")
            amount = f"{decimal(done)} of {decimal(total)}" if total else ""
            progress.update(tasks[stage], completed=done, total=total or None, amount=amount)

        yield report
        for task in tasks.values():
            progress.update(task, total=1, completed=1)


def _print_lines(console: Console) -> ReportProgress:
    printed: set[str] = set()

    def report(stage: str, done: int, total: int) -> None:
        if stage not in printed:
            printed.add(stage)
            console.print(stage, soft_wrap=True, markup=False, highlight=False)

    return report
