"""``safedraft eval``: evaluate defenses on suites and write logs, the input of reports."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safedraft.cli import options
from safedraft.cli.models import ModelChoice, choose_models
from safedraft.core.assignments import invalid_assignment, parse_assignment, refuse_repeated
from safedraft.core.counts import format_count
from safedraft.core.errors import SafeDraftError
from safedraft.core.extras import require_extra

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog

    from safedraft.evaluation.matrix import Matrix

_MATRIX = "What to run"


@choose_models()
def evaluate(
    defense: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:ARG=VALUE,…]",
            help="A defense, optionally with its constants; may be given again. "
            "Default: target_only, ssd, risk.",
            rich_help_panel=_MATRIX,
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="A suite; may be given again. Default: direct, prefill_20, over_refusal, "
            "ordinary.",
            rich_help_panel=_MATRIX,
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="quick, standard or full: sets the defenses, suites and numbers of requests.",
            rich_help_panel=_MATRIX,
        ),
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help="A stage of the profile; may be given again. Default: all.",
            rich_help_panel=_MATRIX,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Requests per suite; an attack has as many harmless controls. Default: 20.",
            rich_help_panel=_MATRIX,
        ),
    ] = None,
    replies: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Sampled replies to each conversation. Default: 1.",
            rich_help_panel="Sampling",
        ),
    ] = None,
    max_new_tokens: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SUITE=]N",
            help="Maximum number of new tokens per reply; SUITE=N for one suite. Default: 48, "
            "or the suite's own.",
            rich_help_panel=_MATRIX,
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SUITE=]SOURCE",
            help="A source by name, or a file FILE[:request=FIELD,…], for all suites of attacks or "
            "for one suite; may be given again.",
            rich_help_panel=_MATRIX,
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="A source of harmless requests, to which every attack is applied as well; may be "
            "given again. Default: ordinary and looks_unsafe, or the suite's own.",
            rich_help_panel=_MATRIX,
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:ARG=VALUE,…]",
            help="A judge that replaces the phrases; may be given again.",
            rich_help_panel=_MATRIX,
        ),
    ] = None,
    log_dir: Annotated[
        Path,
        typer.Option(help="Folder of the logs; an existing one resumes.", rich_help_panel=_MATRIX),
    ] = Path("safedraft-logs"),
    list_all: Annotated[
        bool, typer.Option("--list", help="List suites, sources, defenses and judges, and exit.")
    ] = False,
    temperature: Annotated[
        float | None,
        typer.Option(help="Sampling temperature. Default: 0, greedy.", rich_help_panel="Sampling"),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the first sampled reply to a request.", rich_help_panel="Sampling"
        ),
    ] = 0,
    *,
    models: ModelChoice,
) -> None:
    """Measure defenses: attack success, over-refusal, accuracy and speed.

    Every attack is also applied to harmless requests: a defense that refuses both has not
    recognized the harm. Every reply is logged when it is finished, and the same command resumes
    after any interruption. The default is 3 defenses on 4 suites of 20 requests.

    [dim]safedraft eval --defense target_only --defense ssd:alpha_union=2.0 --suite prefill_20[/]

    [dim]safedraft eval --profile quick[/]

    [dim]safedraft eval --suite direct --source advbench.json:request=goal,answer=target[/]

    Ctrl-C keeps finished replies and exits with 130.
    """
    require_extra("safedraft eval", "eval", "inspect_ai")
    from safedraft.core.config import RiskConfig
    from safedraft.evaluation import matrix as matrices
    from safedraft.evaluation.profiles import Stage, find_stages
    from safedraft.models.probe_file import reads_risk

    if list_all:
        _list()
        return
    stages = [Stage("", defense or matrices.DEFENSES, suite or matrices.SUITES, limit or 20,
                    temperature or 0.0, replies or 1)]  # fmt: skip
    if profile:
        _require_free(
            profile, defense=defense, suite=suite, limit=limit, temperature=temperature,
            replies=replies,
        )  # fmt: skip
        stages = find_stages(profile, stage or ())
    elif stage:
        raise SafeDraftError("--stage is a part of a --profile: name one")
    left_out = not defense and not reads_risk(models.spec.adapter)
    if left_out:
        stages = [one.without("risk") for one in stages]
    names = [name for one in stages for name in one.suites]
    constants = models.constants
    default_length, lengths = _parse_lengths(max_new_tokens, names)
    matrix = matrices.Matrix(
        max_new_tokens=default_length,
        lengths=lengths,
        sources=_parse_sources(source, names),
        controls=control or (),
        judges=judge or (),
        seed=seed,
        pair=models.pair,
        arguments=models.arguments
        | RiskConfig().replace(**constants).model_dump(mode="json", exclude_unset=True),
    )
    for one in stages:
        if one.name:
            options.say(f"stage {one.name}, {one.resolution}")
        _run(one.plan(matrix), one.choose_folder(log_dir))
    if left_out:
        options.say("the risk of requests is not read here: the defense risk was left out")


def _require_free(profile: str, **values: object) -> None:
    """Refuse options that a profile sets."""
    for name, value in values.items():
        if value is not None:
            raise SafeDraftError(f"the profile {profile} sets --{name}: leave it out")


def _run(matrix: Matrix, log_dir: Path) -> None:
    from safedraft.evaluation.matrix import prepare
    from safedraft.evaluation.progress import show_replies
    from safedraft.models.progress import show_progress

    try:
        # inspect_ai announces its hooks on standard output, which is for results.
        with redirect_stdout(StringIO()):
            with show_progress() as report:
                prepared = prepare(matrix, log_dir, report)
            with show_replies():
                logs = prepared.run("none")
    except KeyboardInterrupt:
        options.say(f"stopped; finished replies are in {log_dir}: run the same command to resume")
        raise typer.Exit(130) from None
    _conclude(logs, prepared.skipped, log_dir)


def _parse_lengths(lengths: list[str] | None, suites: list[str]) -> tuple[int, dict[str, int]]:
    """Read ``N`` and ``SUITE=N``: new tokens of all suites, and of single suites by name."""
    from safedraft.evaluation.suites import NEW_TOKENS

    option, form = "--max-new-tokens", "N or SUITE=N, at least 1"
    numbers: dict[str, int] = {}
    for length in lengths or ():
        suite, number = "", length
        if "=" in length:
            suite, number = parse_assignment(option, length, form=form)
            options.require_planned(f"{option} {length}", suite, suites)
        if not number.isdecimal() or not int(number):
            raise invalid_assignment(option, length, form=form)
        if suite in numbers:
            refuse_repeated(f"{option} {suite}".rstrip())
        numbers[suite] = int(number)
    return numbers.pop("", NEW_TOKENS), numbers


def _parse_sources(specs: list[str] | None, suites: list[str]) -> dict[str, list[str]]:
    """Read ``SOURCE`` and ``SUITE=SOURCE``: sources by suite.

    A source without a suite is for every suite of attacks.
    """
    from safedraft.evaluation.suites import collect_suites, find_suite

    attacks = [name for name in suites if find_suite(name).kind == "attack"]
    sources: dict[str, list[str]] = {}
    for spec in specs or ():
        targets, source = attacks, spec
        if any(
            spec.startswith(f"{suite}=") for suite in collect_suites()
        ):  # a file's options have = too
            suite, source = parse_assignment("--source", spec, form="SUITE=SOURCE")
            options.require_planned(f"--source {spec}", suite, suites)
            targets = [suite]
        for name in targets:
            sources.setdefault(name, []).append(source)
    if specs and not sources:
        raise SafeDraftError(f"--source {specs[0]}: no suite of attacks is run; write SUITE=SOURCE")
    return sources


def _conclude(logs: list[EvalLog], skipped: int, log_dir: Path) -> None:
    """Print the results and the next command; exit with code 1 if samples failed."""
    if skipped:
        options.say(
            f"{format_count(skipped, 'prompt')} left out where an answer is prefilled: the target "
            "gives none"
        )
    failed = [log for log in logs if log.status != "success"]
    for log in failed:
        why = log.error.message if log.error else log.status
        options.say(f"{log.eval.task} of {log.eval.model_args['label']}: {why.splitlines()[0]}")
    if failed:
        options.say("run the same command to repeat the failed ones")
    else:
        _print_results([log.location for log in logs])
    sys.stdout.write(f"logs: {log_dir}\nnext: safedraft report {log_dir}\n")
    if failed:
        raise typer.Exit(1)


def _print_results(files: list[str]) -> None:
    """Print the findings and the tables of shares of these logs."""
    from rich.console import Console

    from safedraft.cli.tables import draw_section
    from safedraft.evaluation.logs import read_logs
    from safedraft.evaluation.report.figures import build_figures

    figures = build_figures(read_logs(files))
    console = Console(highlight=False)
    for section in figures.sections:
        if all(table.unit == "share" for table in section.tables):
            console.print(draw_section(section), "", sep="\n")
    console.print(figures.headline, figures.conditions, "", sep="\n", markup=False)
    for warning in figures.warnings:
        options.say(f"warning: {warning}")


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    from safedraft.defenses import list_defenses
    from safedraft.evaluation.judges import JUDGES
    from safedraft.evaluation.suites import collect_suites
    from safedraft.prompts.sources import SOURCES

    suites = Table("suite", "kind", "family", "source", box=None, pad_edge=False)
    for suite in collect_suites().values():
        suites.add_row(suite.name, suite.kind, suite.family, suite.source)
    sources = Table("source", "", box=None, pad_edge=False)
    for name in SOURCES.names():
        sources.add_row(name, _describe_source(name))
    console = Console(highlight=False)
    console.print(suites, "", sources, "", f"defenses: {', '.join(list_defenses())}", sep="\n")
    console.print(f"judges: {', '.join(JUDGES.names())}")


def _describe_source(name: str) -> str:
    from safedraft.prompts.sources import SOURCES

    try:
        return SOURCES.find(name).about
    except SafeDraftError as error:
        return f"not usable: {error}"
