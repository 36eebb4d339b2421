"""``safedraft pairs``: list the registered pairs and the constants, and add pairs."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from safedraft.cli import options
from safedraft.cli.doctor import print_checks
from safedraft.cli.models import PAIR_ARGUMENT, ModelChoice, choose_models
from safedraft.core.errors import SafeDraftError, refuse_invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from safedraft.models.registry import PairSpec


def pairs(
    context: typer.Context,
    constants: Annotated[
        bool, typer.Option("--constants", help="List the method's constants and their meaning.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """List the registered pairs, or the constants of the method.

    Your own pairs are in [bold]pairs/*.toml[/] in the configuration folder shown below the list;
    [bold]safedraft pairs add[/] writes such a file.
    """
    from safedraft.cli.render import make_console
    from safedraft.models.registry import pairs as registered

    if context.invoked_subcommand:
        if constants or as_json:
            raise SafeDraftError("--constants and --json are about the list: leave them out")
        return
    if constants:
        _print_constants(as_json)
        return
    specs = registered()
    if as_json:
        pairs_by_name = {name: spec.model_dump(exclude={"name"}) for name, spec in specs.items()}
        sys.stdout.write(json.dumps(pairs_by_name, indent=1) + "\n")
        return
    print_pairs(specs, make_console())


def print_pairs(specs: Mapping[str, PairSpec], console: Console) -> None:
    """Print each pair with its models below it, then the registered models and the folder."""
    from rich.text import Text

    from safedraft.models.registry import DEFAULT_PAIR, config_folder, model_files

    for name, spec in specs.items():
        default = " (the default pair)" if name == DEFAULT_PAIR else ""
        console.print(Text.assemble((name, "bold"), default), soft_wrap=True)
        adapter = spec.adapter or ("a system prompt of its own" if spec.draft_system else "none")
        for what, value in (("target", spec.target), ("draft", spec.draft), ("adapter", adapter)):
            console.print(Text(f"  {what:<9}{value}"), soft_wrap=True)
    console.print()
    console.print(Text(f"models: {', '.join(model_files())}", "dim"))
    console.print(Text(f"your own: {config_folder() / 'pairs'}/*.toml", "dim"), soft_wrap=True)


def _print_constants(as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from safedraft.core.config import RiskConfig

    fields = RiskConfig.model_json_schema()["properties"]
    if as_json:
        sys.stdout.write(json.dumps(fields, indent=1, ensure_ascii=False) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("constant", "default", "meaning"):
        table.add_column(heading, overflow="fold")
    for name, field in fields.items():
        meaning = field["description"].replace("``", "")
        table.add_row(f"[bold]{name}[/]", str(field["default"]), meaning)
    Console(highlight=False).print(table)


@choose_models(PAIR_ARGUMENT, "dtype", "device", "engine", "engine_option")
def add_pair(
    name: Annotated[str, typer.Argument(help="Name of the new pair, and of its file.")],
    copied: Annotated[
        str | None,
        typer.Argument(metavar="PAIR", help="A registered pair to copy from, as with --pair."),
    ] = None,
    description: Annotated[str, typer.Option(help="What the pair is.")] = "",
    *,
    models: ModelChoice,
) -> None:
    """Add a pair of your own, which every command then finds by its name.

    Name its target and draft, or another pair to copy from. The two models are checked as by
    safedraft doctor. The pair becomes a file of the configuration folder; edit that file to
    change the pair, and delete it to remove the pair.

    [dim]safedraft pairs add my-pair --target TARGET --draft DRAFT --adapter my-draft[/]
    """
    from safedraft.cli.render import make_console
    from safedraft.models.doctor import examine
    from safedraft.models.progress import show_progress
    from safedraft.models.registry import require_new_pair, write_new_pair

    require_new_pair(name)
    spec = _read_pair(name, description, models.name_pair(copied))
    with show_progress() as report:
        compatibility = examine(spec, report)
    compatibility.require()
    warnings = [check for check in compatibility.checks if check.status == "warning"]
    print_checks(warnings, make_console(stderr=True))
    sys.stdout.write(f"{write_new_pair(spec)}\n")
    options.say(_next_step(spec))


def _read_pair(name: str, description: str, models: ModelChoice) -> PairSpec:
    """The pair that the options describe.

    Raises:
        SafeDraftError: a model is missing, or a value cannot be used.
    """
    from safedraft.models.registry import PairSpec

    if not models.pair and not (models.target and models.draft):
        raise SafeDraftError("name --target and --draft, or another pair to copy from")
    spec = models.spec
    changes = {
        "name": name,
        "description": description or spec.description,
        "draft_dtype": models.draft_dtype or spec.draft_dtype,
        "config": models.config or spec.config,
    }
    with refuse_invalid(shown=True):
        return PairSpec.model_validate(dict(spec) | changes)


def _next_step(spec: PairSpec) -> str:
    if spec.warning is None:
        return f"Next: safedraft calibrate {shlex.quote(spec.name)}"
    command = shlex.join(["safedraft", "train-draft", "--pair", spec.name, "--output", "my-draft"])
    return f"Next: {command}, and then adapter = … in this file"
