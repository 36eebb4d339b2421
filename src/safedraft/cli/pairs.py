"""``safedraft pairs``: list the registered pairs and the constants."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from safedraft.cli import options


def pairs(
    constants: Annotated[
        bool, typer.Option("--constants", help="List the method's constants and their meaning.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """List the registered pairs, or the constants of the method.

    Your own pairs belong in [bold]pairs/*.toml[/] in the configuration folder shown below the list.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from safedraft.models.registry import config_folder, model_files
    from safedraft.models.registry import pairs as registered

    if constants:
        _print_constants(as_json)
        return
    specs = registered()
    if as_json:
        pairs_by_name = {name: spec.model_dump(exclude={"name"}) for name, spec in specs.items()}
        sys.stdout.write(json.dumps(pairs_by_name, indent=1) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("pair", "target", "draft", "adapter"):
        table.add_column(heading, overflow="fold")
    for name, spec in specs.items():
        adapter = spec.adapter or ("a system prompt of its own" if spec.draft_system else "none")
        table.add_row(Text(name, "bold"), *map(Text, (spec.target, spec.draft, adapter)))
    console = Console(highlight=False)
    console.print(table)
    console.print(Text(f"models: {', '.join(model_files())}", "dim"), soft_wrap=True)
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
        table.add_row(f"[bold]{name}[/]", str(field["default"]), field["description"])
    Console(highlight=False).print(table)
