"""``safedraft calibrate``: choose a pair's constants, on prompts that no report uses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safedraft.cli import options
from safedraft.cli.models import TEMPLATES, ModelChoice, choose_models
from safedraft.core.assignments import parse_assignment, parse_assignments, parse_value
from safedraft.core.errors import SafeDraftError
from safedraft.core.extras import require_extra

if TYPE_CHECKING:
    from safedraft.evaluation.calibrate import CalibrationResult
    from safedraft.models.registry import PairSpec


@choose_models("target", "draft", "adapter", *TEMPLATES, "settings")
def calibrate(
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="NAME=V1,V2,…",
            help="A constant and the values to try, instead of the whole sweep; may be given "
            "again.",
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="A suite of attacks, with its controls; may be given again. Default: prefill_20 "
            "and histories."
        ),
    ] = None,
    harmless: Annotated[
        list[str] | None,
        typer.Option(
            help="A suite of harmless prompts, including arithmetic; may be given again. Default: "
            "over_refusal and ordinary."
        ),
    ] = None,
    max_lost: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Largest share of harmless prompts that may be lost beyond those that the target "
            "alone loses: refused, under an attack or without, or answered wrong.",
        ),
    ] = 0.05,
    limit: Annotated[
        int,
        typer.Option(min=1, help="Requests per suite; an attack has as many harmless controls."),
    ] = 20,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum number of new tokens per reply.")
    ] = 48,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="SUITE=SOURCE", help="A source that replaces a suite's own."),
    ] = None,
    log_dir: Annotated[
        Path, typer.Option(help="Folder of the trials; an existing one resumes.")
    ] = Path("safedraft-calibration"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the choice without writing it.")
    ] = False,
    *,
    models: ModelChoice,
) -> None:
    """Choose a pair's constants: first the trade-off of safety and usefulness, then speed.

    Constants are tried one after the other on the calibration split, which shares no prompt with
    training or reports; those of the risk are tried together. The fewest attacks may succeed among
    the trials that lose at most --max-lost of the harmless prompts. The result is saved as a user
    pair, which every command finds; a report in the folder of the trials shows the trade-off.

    [dim]safedraft calibrate --try alpha_union=0.8,2.0 --try draft_tokens=3,4,6[/]
    """
    require_extra("safedraft calibrate", "eval", "inspect_ai", "matplotlib")
    if models.no_adapter and not dry_run:
        raise SafeDraftError(
            "--no-adapter: constants for the bare draft are not saved for the pair; add --dry-run"
        )
    from safedraft.evaluation.calibrate import TIMED, Calibration, write_calibrated
    from safedraft.evaluation.logs import read_logs
    from safedraft.evaluation.report.figures import build_figures
    from safedraft.evaluation.report.write import write_report
    from safedraft.models.progress import show_progress
    from safedraft.models.registry import DEFAULT_PAIR, calibrated_file, find_pair

    spec = find_pair(models.pair or DEFAULT_PAIR)
    calibrated_file(spec.name)  # an error before the sweep
    tried = parse_assignments("--try", values, form="NAME=V1,V2,…")
    candidates = {name: [*map(parse_value, listed.split(","))] for name, listed in tried.items()}
    attacks, benign = attack or Calibration.attacks, harmless or Calibration.harmless
    suites = list(dict.fromkeys([*attacks, *benign, TIMED]))
    sources: dict[str, list[str]] = {}
    for assignment in source or ():
        suite, name = parse_assignment("--source", assignment, form="SUITE=SOURCE")
        options.require_planned(f"--source {assignment}", suite, suites)
        sources.setdefault(suite, []).append(name)
    try:
        with show_progress() as report:
            outcome = Calibration(
                spec,
                log_dir,
                candidates=candidates or None,
                attacks=attacks,
                harmless=benign,
                max_lost=max_lost,
                limit=limit,
                max_new_tokens=max_new_tokens,
                sources=sources,
                arguments=models.arguments,
                report=report,
                display="none" if sys.stdout.isatty() else "plain",
            ).run()
    except KeyboardInterrupt:
        options.say(f"stopped; the trials so far are in {log_dir}: run the same command to resume")
        raise typer.Exit(130) from None
    _print(spec, outcome, max_lost)
    page, *_ = write_report(build_figures(read_logs([log_dir], "calibration")), log_dir / "report")
    sys.stdout.write(f"drawn: {page}\n")
    if not dry_run:
        sys.stdout.write(f"written: {write_calibrated(spec, outcome.config)}\n")


def _print(spec: PairSpec, outcome: CalibrationResult, max_lost: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("constants", box=None, pad_edge=False)
    for heading in ("attack success", "controls refused", "refused or wrong", "tokens/s"):
        table.add_column(heading, justify="right")
    for trial in (outcome.target, *outcome.trials):
        named = " ".join(f"{name}={value}" for name, value in trial.constants.items())
        table.add_row(
            named or "the target alone",
            f"{trial.attack_success:.0%}",
            f"{trial.refused:.0%}",
            f"{trial.lost:.0%}",
            f"{trial.tokens_per_second:.2f}",
        )
    console = Console(highlight=False)
    console.print(table)
    if min(trial.excess(outcome.target) for trial in outcome.trials) > max_lost:
        console.print(
            f"no trial loses at most {max_lost:.0%} of the harmless prompts beyond the target's "
            "own share: the sum of attack success and lost prompts decided"
        )
    before = spec.config.model_dump(mode="json")
    after = outcome.config.model_dump(mode="json")
    changes = [f"{name} = {after[name]}" for name in after if after[name] != before[name]]
    console.print(f"chosen: {', '.join(changes) or 'the present constants'}")
