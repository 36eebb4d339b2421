"""The command line, one file per command; a command imports torch and models when it runs."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Callable
from inspect import cleandoc
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.console import Console
from rich.markup import escape

from safedraft.cli.bench import bench
from safedraft.cli.calibrate import calibrate
from safedraft.cli.chat import chat
from safedraft.cli.doctor import doctor
from safedraft.cli.evaluate import evaluate
from safedraft.cli.generate import generate
from safedraft.cli.judge_check import judge_check
from safedraft.cli.pairs import add_pair, pairs
from safedraft.cli.pull import pull
from safedraft.cli.replay import replay
from safedraft.cli.report import report
from safedraft.cli.score import score
from safedraft.cli.serve import serve
from safedraft.cli.train_ada_probe import train_ada_probe
from safedraft.cli.train_draft import train_draft
from safedraft.cli.train_risk import train_risk
from safedraft.cli.tune_tree import tune_tree
from safedraft.cli.usage import Command, Group
from safedraft.core.errors import SafeDraftError, UnguardedWarning, problems

if TYPE_CHECKING:
    from pydantic import ValidationError

app = typer.Typer(
    name="safedraft",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Decode a large language model with the safety of a small one, and faster.\n\n"
    "A small, deep-aligned draft model proposes tokens, the target verifies them, and every token "
    "comes from both (Speculative Safety-Aware Decoding, arXiv 2508.17739).\n\n"
    "Start with: [bold]safedraft pull[/], then [bold]safedraft generate --compare "
    '"Why is the sky blue?"[/]',
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"safedraft {metadata.version('safedraft')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options before any command."""


_COMMANDS: dict[str, Callable[..., None]] = {
    "pull": pull,
    "doctor": doctor,
    "generate": generate,
    "chat": chat,
    "replay": replay,
    "bench": bench,
    "eval": evaluate,
    "report": report,
    "calibrate": calibrate,
    "tune-tree": tune_tree,
    "score": score,
    "judge-check": judge_check,
    "train-draft": train_draft,
    "train-risk": train_risk,
    "train-ada-probe": train_ada_probe,
}


def _flow(text: str | None) -> str:
    """A docstring whose paragraphs are single lines, which a terminal of any width breaks."""
    return "\n\n".join(" ".join(part.split()) for part in cleandoc(text or "").split("\n\n"))


for name, command in _COMMANDS.items():
    app.command(name, cls=Command, help=_flow(command.__doc__))(command)
_pairs = typer.Typer(cls=Group)
_pairs.callback(invoke_without_command=True, help=_flow(pairs.__doc__))(pairs)
_pairs.command("add", cls=Command, help=_flow(add_pair.__doc__))(add_pair)
app.add_typer(_pairs, name="pairs")
# Options that SafeDraft does not know are passed to vLLM.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(cls=Command, help=_flow(serve.__doc__), context_settings=_PASSED_ON)(serve)


def main() -> None:
    """Run the command line; errors that a user can fix are one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # terminals show ? for characters they lack
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):  # what is not Unicode is refused as a message
        sys.stdin.reconfigure(errors="surrogateescape")
    warnings.showwarning = _show_warning
    try:
        app()
    except SafeDraftError as error:
        _fail(str(error))
    except _validation_error() as error:
        _fail("; ".join(problems(error, shown=True)))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _fail(
                f"the disk is full ({error.filename or 'while writing'}): make room, run it again"
            )
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")


def _validation_error() -> type[ValidationError]:
    """The error of Pydantic, which is imported only after something has failed."""
    from pydantic import ValidationError

    return ValidationError


def _fail(message: str) -> None:
    _tell("[bold red]error:[/]", message)
    sys.exit(2)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show SafeDraft's own warnings without their place in the code."""
    if issubclass(category, UnguardedWarning):
        _tell("[bold yellow]warning:[/]", str(message))
    else:
        place = filename, lineno, line
        (file or sys.stderr).write(warnings.formatwarning(message, category, *place))


def _tell(heading: str, message: str) -> None:
    line = " ".join(message.split())
    console = Console(stderr=True)
    with console.capture() as text:
        console.print(f"{heading} {escape(line)}", soft_wrap=True)
    sys.stderr.write(text.get())  # above a bar of progress, which rich's own consoles overwrite
