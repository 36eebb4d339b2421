"""``safedraft bench``: measure speed against other ways of generation."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from safedraft.cli import options
from safedraft.cli.models import ModelChoice, choose_models
from safedraft.core.counts import format_count


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
            help="A static tree to draft by the pair's own rule, as the constant draft_tree: the "
            "number of children of each node, by level (2-1-0-1); may be given again."
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
    warm-up, with greedy decoding. Figures are medians over the prompts; ratios are computed per
    prompt.

    [dim]safedraft bench --draft-tokens 3 --draft-tokens 5[/]
    """
    from rich.console import Console
    from rich.progress import Progress

    from safedraft.evaluation.benchmark import PROMPTS, measure

    loaded = models.load()
    chosen = PROMPTS[:prompts]
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


def _print(outcome: dict[str, Any]) -> None:
    from rich.table import Table

    from safedraft.cli.render import make_console

    table = Table(box=None, pad_edge=False)
    headings = "tokens/s", "ratio", "tokens/pass", "match ratio", "target", "draft", "rest"
    table.add_column("method")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, figures in outcome["methods"].items():
        match = figures["match_ratio"]
        table.add_row(
            name,
            f"{figures['tokens_per_second']:.2f}",
            f"{figures['ratio']:.2f}",
            f"{figures['tokens_per_target_pass']:.2f}",
            "" if match is None else f"{match:.2f}",
            *(f"{figures[share]:.1%}" for share in ("target_share", "draft_share", "rest_share")),
        )
    console = make_console()
    console.print(table)
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
        f"ratios to {outcome['baseline']}; engine {outcome['engine']}; {', '.join(memory)}; "
        f"{machine['processor']}, {threads}, torch {machine['torch']}",
        style="dim",
    )
