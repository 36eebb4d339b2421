"""``safedraft tune-tree``: choose whether a pair drafts chains or trees, by measured times."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from safedraft.cli.models import TEMPLATES, ModelChoice, choose_models
from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from safedraft.core.config import DraftingConfig
    from safedraft.evaluation.trees.tune import Tuning


@choose_models("target", "draft", "adapter", *TEMPLATES)
def tune_tree(
    limit: Annotated[
        int,
        typer.Option(
            min=2, help="Prompts of each kind of text: one half is recorded, the other decoded."
        ),
    ] = 4,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum number of new tokens per reply.")
    ] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="How often each pass is timed.")] = 9,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the choice without writing it.")
    ] = False,
    *,
    models: ModelChoice,
) -> None:
    """Choose what a pair drafts: a chain, a static tree (Sequoia), or a tree that is grown.

    The pair answers prompts of the calibration half greedily. The gain of other shapes is
    computed from these replies and from the times of passes on this machine; the best shape of
    each kind then decodes other prompts, in turn with the pair's own shape. Another shape is
    chosen only if it is at least 5% faster, and in no kind of text more than 3% slower; a tree of
    the pair's own has to be so much faster than a chain to be kept. The choice is saved as a user
    pair. No shape changes a token of the pair's own rule. Run the command on an
    idle machine.

    [dim]safedraft tune-tree --limit 6[/]
    """
    from rich.console import Console
    from rich.progress import Progress

    from safedraft.evaluation.calibrate import write_calibrated
    from safedraft.evaluation.trees.tune import OWN, read_kinds, tune
    from safedraft.models.registry import calibrated_file

    if models.no_adapter and not dry_run:
        raise SafeDraftError(
            "--no-adapter: a shape for the bare draft is not saved for the pair; add --dry-run"
        )
    calibrated_file(models.spec.name)  # an error before the measurements
    pair = models.load()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("loading", total=None)

        def report(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        tuning = tune(
            pair,
            read_kinds(limit),
            max_new_tokens=max_new_tokens,
            rounds=rounds,
            report=report,
        )
    _print(tuning)
    chosen = tuning.trials[tuning.chosen].config
    if tuning.chosen == OWN:
        sys.stdout.write("chosen: the pair's own, since no other shape is clearly faster\n")
        return
    reason = ", since the pair's own tree is not clearly faster" if tuning.gives_way else ""
    sys.stdout.write(
        f"chosen: {tuning.chosen}{reason}: {_show(chosen, tuning.trials[OWN].config)}\n"
    )
    if not dry_run:
        config = models.spec.config.replace(**dict(chosen))
        sys.stdout.write(f"written: {write_calibrated(models.spec, config)}\n")


def _show(config: DraftingConfig, before: DraftingConfig) -> str:
    """Format the constants that differ from those of the pair."""
    from safedraft.core.config import show_constant

    old = dict(before)
    return ", ".join(
        f"{name} = {show_constant(value)}" for name, value in config if value != old[name]
    )


def _print(tuning: Tuning) -> None:
    from rich.table import Table

    from safedraft.cli.render import make_console
    from safedraft.evaluation.trees.drafting import Drafting

    console = make_console()
    shares = "  ".join(f"{share:.3f}" for share in tuning.shares)
    console.print(f"share of the draft's proposals, from its first: {shares}")
    for which, times in tuning.times.items():
        rows = {
            count: times[count - 1] for count in (1, 2, 4, 8, 16, 32, 64) if count <= len(times)
        }
        listed = "  ".join(f"{count}: {taken:.1f}" for count, taken in rows.items())
        console.print(f"milliseconds of a pass of the {which} by rows: {listed}")
    table = Table(box=None, pad_edge=False)
    table.add_column("shape", overflow="fold")
    for heading in ("expected", "tokens/pass", "expected", "faster by", "at least"):
        table.add_column(heading, justify="right")
    for name, trial in tuning.trials.items():
        least = min(tuning.ratio(name, kind) for kind in trial.seconds)
        table.add_row(
            name,
            f"{trial.tokens_per_pass:.2f}",
            f"{trial.decoded_per_pass:.2f}",
            f"{trial.gain:+.0%}",
            f"{tuning.ratio(name) - 1:+.0%}",
            f"{least - 1:+.0%}",
        )
    console.print(table)
    for name, trial in tuning.trials.items():
        console.print(f"{name}: {Drafting(trial.config)}")
    replies = max(trial.same for trial in tuning.trials.values())
    console.print(
        "Tokens per pass of the target, and how much faster than the pair's own shape: expected "
        f"from recorded replies, and as decoded ({replies} replies; at least: of any text). "
        f"By Sequoia's dynamic program the static tree decides {tuning.value:.2f} tokens per pass.",
        style="dim",
    )
    for name, trial in tuning.trials.items():
        if other := replies - trial.same:
            console.print(f"{name}: {other} of {replies} replies have other tokens, by rounding")
