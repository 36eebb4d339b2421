"""``safedraft bench``: measure speed against other ways of generation."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safedraft.cli import options
from safedraft.cli.models import ModelChoice, choose_models
from safedraft.core.counts import format_count

if TYPE_CHECKING:
    from rich.table import Table


@choose_models()
def bench(
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens per reply.")] = 64,
    prompts: Annotated[
        int, typer.Option(help="Number of the benchmark's own prompts.", min=1, max=12)
    ] = 6,
    draft_tokens: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="T, the number of drafted tokens of the pair's own rule; may be given again to "
            "try several. Default: the pair's own.",
        ),
    ] = None,
    assisted_tokens: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Constant numbers of drafted tokens for assisted generation."),
    ] = None,
    tree: Annotated[
        list[str] | None,
        typer.Option(
            help="A tree to draft by the pair's own rule: a static one, as the constant draft_tree "
            "(the number of children of each node, by level: 2-1-0-1), or a grown one, as its "
            "constants with commas between them (draft_tree_threshold=0.12,…); may be given again."
        ),
    ] = None,
    as_json: options.Json = False,
    *,
    models: ModelChoice,
) -> None:
    """Compare the speed of SSD with Transformers' own generation, on ordinary prompts.

    The methods are the target alone, assisted generation with the same draft (its default schedule,
    and constant numbers of drafted tokens), the ensemble weight, and the pair's own rule: risk (SSD
    with the request's risk) or ssd (SSD alone). They answer the same prompts in turn, after a
    warm-up, with greedy decoding. Speeds are medians over the prompts, and ratios are medians of
    the ratio of each prompt. Rows are positions at which the target computed a distribution,
    including those after rejected drafts.

    [dim]safedraft bench --draft-tokens 3 --draft-tokens 5[/]
    """
    from rich.console import Console
    from rich.progress import Progress

    from safedraft.evaluation.benchmark import measure
    from safedraft.evaluation.benchmark_prompts import KIND_OF

    loaded = models.load()
    chosen = dict(islice(KIND_OF.items(), prompts))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("decoding", total=None)
        outcome = measure(
            loaded,
            chosen,
            max_new_tokens=max_new_tokens,
            draft_tokens=draft_tokens or [loaded.config.draft_tokens],
            assisted_tokens=assisted_tokens or [4],
            trees=tree or (),
            report=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if as_json:
        sys.stdout.write(json.dumps(outcome) + "\n")
    else:
        _print(outcome)


SHARES = "target", "draft", "rest"
"""Parts into which the time of a reply is divided."""


def _print(outcome: dict[str, Any]) -> None:
    from rich.table import Table

    from safedraft.cli.render import make_console

    table = Table(box=None, pad_edge=False, collapse_padding=True)
    headings = "tokens/s", "ratio", "tokens per pass", "rows/s", "match ratio", *SHARES
    table.add_column("method", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, figures in outcome["methods"].items():
        match = figures["match_ratio"]
        table.add_row(
            name,
            f"{figures['tokens_per_second']:.2f}",
            f"{figures['ratio']:.2f}",
            f"{figures['tokens_per_target_pass']:.2f}",
            f"{figures['rows_per_second']:.1f}",
            "" if match is None else f"{match:.2f}",
            *(f"{figures[f'{share}_share']:.0%}" for share in SHARES),
        )
    console = make_console()
    console.print(table)
    console.print(_tabulate_kinds(outcome["methods"]))
    for name, shape in outcome["shapes"].items():
        console.print(f"{name}: {shape}")
    for name, reason in outcome["left_out"].items():
        console.print(f"left out: {name}: {reason}")
    memory = [f"peak memory of SSD {outcome['peak_memory_bytes'] / 2**30:.2f} GiB"]
    if outcome["weights_bytes"] is not None:
        memory.append(f"weights {outcome['weights_bytes'] / 2**30:.2f} GiB")
    machine = outcome["machine"]
    threads = format_count(machine["threads"], "thread")
    console.print(
        f"{format_count(outcome['prompts'], 'prompt')}, "
        f"{format_count(outcome['max_new_tokens'], 'token')} each; "
        f"ratios to {outcome['baseline']}, by kind to {outcome['chain']}; "
        f"engine {outcome['engine']}; {', '.join(memory)}; "
        f"{machine['processor']}, {threads}, torch {machine['torch']}",
        style="dim",
    )


def _tabulate_kinds(methods: Mapping[str, Any]) -> Table:
    """Tokens per second, ratio and match ratio of each method, by kind of text."""
    from rich.table import Table

    kinds = list(next(iter(methods.values()))["kinds"])
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("tokens/s by kind", no_wrap=True)
    for kind in kinds:
        for heading in (kind, "ratio", "match"):
            table.add_column(heading, justify="right")
    for name, figures in methods.items():
        cells = []
        for kind in kinds:
            own = figures["kinds"][kind]
            match = own["match_ratio"]
            cells += [f"{own['tokens_per_second']:.2f}", f"{own['ratio']:.2f}"]
            cells.append("" if match is None else f"{match:.2f}")
        table.add_row(name, *cells)
    return table
