"""``safedraft doctor``: check whether two models can decode together."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from safedraft.cli import options
from safedraft.cli.models import ENGINE, PAIR_ARGUMENT, ModelChoice, choose_models
from safedraft.core.counts import format_count
from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from safedraft.models.check import Check, Status
    from safedraft.models.compatibility import CompatibilityReport
    from safedraft.models.proposals import Proposals

_MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "failure": "[bold red]✗[/]"}

_GROUPS = {
    "Templates and thinking": ("chat template", "system prompt", "thinking", "template settings"),
    "Adapter": ("adapter", "risk"),
    "Memory and license": ("memory", "devices", "license"),
}
"""Names of checks by the heading that they stand under; all others stand under the first one."""

_FIRST_GROUP = "Decoding together"


@choose_models(PAIR_ARGUMENT, "target", "draft", *ENGINE, "settings")
def doctor(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="PAIR|TARGET",
            help="A registered pair, as with --pair; or a target: a registered model, a folder, a "
            "GGUF file, or a hub id owner/name\\[@revision], for which drafts are proposed if "
            "none is named.",
        ),
    ] = None,
    draft: Annotated[str | None, typer.Argument(help="The draft, named in the same ways.")] = None,
    as_json: options.Json = False,
    *,
    models: ModelChoice,
) -> None:
    """Check whether two models can decode together, explain what prevents it, and what to run next.

    The command reads configurations and tokenizers, but loads no weights; a registered model that
    is not in the cache is fetched completely. Loading a pair runs the same checks. With a target
    alone it proposes drafts; without an argument it checks the default pair. The exit code is 1 if
    the two are incompatible, or if no draft is known.

    [dim]safedraft doctor Qwen/Qwen3-8B[/]

    [dim]safedraft doctor qwen2.5-coder-1.5b-instruct qwen2.5-coder-0.5b-instruct[/]
    """
    from safedraft.models.doctor import examine
    from safedraft.models.progress import show_progress
    from safedraft.models.registry import pairs

    if target in pairs() and not draft:
        models, target = models.name_pair(target), None
    models = replace(models, target=target, draft=draft)
    if target and not draft and not models.pair:
        _propose(target, models, as_json)
        return
    with show_progress() as report:
        outcome = examine(models.spec, report)
    if as_json:
        sys.stdout.write(json.dumps(outcome.to_dict(), indent=1, ensure_ascii=False) + "\n")
    else:
        _print_report(outcome, models)
    if not outcome.compatible:
        raise typer.Exit(1)


def print_checks(checks: Sequence[Check], console: Console) -> None:
    """Print each check after its mark; on a terminal its lines are indented."""
    for check in checks:
        _print_marked(check.status, f"[bold]{check.name}[/]: {escape(check.detail)}", console)


def _print_marked(status: Status, markup: str, console: Console) -> None:
    from rich.text import Text

    mark, text = Text.from_markup(_MARKS[status]), Text.from_markup(markup)
    lines = text.wrap(console, console.width - 2) if console.is_terminal else [text]
    console.print(Text.assemble(mark, " ", Text("\n  ").join(lines)))


def _print_report(outcome: CompatibilityReport, models: ModelChoice) -> None:
    """Print the checks in groups, and at the end the verdict and what to do next."""
    from safedraft.cli.render import make_console

    console = make_console()
    headings = {name: heading for heading, names in _GROUPS.items() for name in names}
    for heading in (_FIRST_GROUP, *_GROUPS):
        checks = [
            check for check in outcome.checks if headings.get(check.name, _FIRST_GROUP) == heading
        ]
        if checks:
            console.print(heading, style="bold underline")
            print_checks(checks, console)
            console.print()
    warned = [check.name for check in outcome.checks if check.status == "warning"]
    notes = f", with {format_count(len(warned), 'warning')} ({', '.join(warned)})" if warned else ""
    can = "can" if outcome.compatible else "cannot"
    verdict = escape(f"{outcome.target} and {outcome.draft} {can} decode together")
    mark: Status = "ok" if outcome.compatible else "failure"
    _print_marked(mark, f"[bold]{verdict}{notes}.[/]", console)
    _print_next(outcome, models, console)


def _propose(target: str, models: ModelChoice, as_json: bool) -> None:
    """Print drafts for a target, each with the command that compares the two.

    Raises:
        SafeDraftError: an option is about a draft that is not named.
    """
    from safedraft.models.progress import show_progress
    from safedraft.models.proposals import propose_drafts

    if about_draft := replace(models, target=None).words:
        raise SafeDraftError(
            f"{about_draft[0]} is about a pair: name a draft after {target}, or leave the option "
            "out to see which drafts there are"
        )
    with show_progress() as report:
        proposals = propose_drafts(target, report)
    if as_json:
        sys.stdout.write(json.dumps(proposals.to_dict(), indent=1, ensure_ascii=False) + "\n")
    else:
        _print_proposals(proposals)
    if not proposals.drafts:
        raise typer.Exit(1)


def _print_proposals(proposals: Proposals) -> None:
    from safedraft.cli.render import make_console

    console = make_console()
    for problem in proposals.problems:
        _print_marked("failure", escape(problem), console)
    for draft in proposals.drafts:
        console.print(f"[bold]{escape(draft.draft)}[/]: {escape(draft.reason)}")
        _print_command(["doctor", *draft.words], console, indent="  ")
    if not proposals.drafts:
        console.print(f"\n{_explain_none(proposals)}", markup=False)


def _explain_none(proposals: Proposals) -> str:
    if proposals.problems:
        return (
            f'No draft can guard {proposals.target}: the page "Guard your own model" of the '
            "documentation names other models."
        )
    return (
        f"SafeDraft knows no small model with the tokenizer of {proposals.target}. Any causal "
        "language model that has it, and at most half of its weights, can be tried: "
        f"{shlex.join(['safedraft', 'doctor', proposals.target, 'DRAFT'])}"
    )


def _print_next(outcome: CompatibilityReport, models: ModelChoice, console: Console) -> None:
    """Print what to do after the checks: repair, train a draft, or decode."""
    if not outcome.compatible:
        broken = ", ".join(check.name for check in outcome.checks if check.status == "failure")
        advice = f"repair what is marked ✗ ({broken}), or choose another draft of the same family."
        console.print(f"Next: {advice}", markup=False)
        return
    command = ["generate", *models.words, "--compare", "A request that it should refuse"]
    if not models.spec.adapter and not models.spec.bare_draft:
        command = ["train-draft", *models.words, "--output", "my-draft"]
        if added := [word for check in outcome.checks for word in check.options]:
            command = ["doctor", *models.words, *added]  # no draft is trained before that
    _print_command(command, console)


def _print_command(words: Sequence[str], console: Console, indent: str = "") -> None:
    """Print a command that can be copied; on a terminal its lines end as a shell continues them."""
    lines = [f"{indent}Next: safedraft"]
    for word in map(shlex.quote, words):
        if console.is_terminal and len(lines[-1]) + len(word) + len(" \\ ") > console.width:
            lines[-1] += " \\"
            lines.append(f"{indent}     ")
        lines[-1] += f" {word}"
    console.print("\n".join(lines), markup=False, soft_wrap=True)
