"""``safedraft serve``: a server with the OpenAI API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import typer

from safedraft.cli import options
from safedraft.errors import SafeDraftError


def serve(
    context: typer.Context,
    pair: Annotated[
        str | None, typer.Argument(help="A registered pair; the default one when not given.")
    ] = None,
    engine: Annotated[
        Literal["vllm"], typer.Option(help="vLLM's own server, with SSD as its rule.")
    ] = "vllm",
    target: options.Target = None,
    draft: options.Draft = None,
    adapter: options.Adapter = None,
    no_adapter: options.NoAdapter = False,
    settings: options.Set = None,
    draft_tokens_up_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REQUESTS:T",
            help="T while no more than so many requests run; may be given again for more.",
            rich_help_panel="Method",
        ),
    ] = None,
    requests_may_set_constants: Annotated[
        bool,
        typer.Option(
            "--requests-may-set-constants",
            help="Let a request change the method's constants, down to no defence at all.",
            rich_help_panel="Method",
        ),
    ] = False,
) -> None:
    """Serve a pair to any client of the OpenAI API, every reply decoded with SSD.

    Options that are not listed here are vLLM's own and stand last. T is --set draft_tokens=N at any
    load, or --draft-tokens-up-to; on processors it falls with load unless one of them is given.

    [dim]safedraft serve qwen2.5-coder --engine vllm --port 8000 --max-num-seqs 16[/]
    """
    from safedraft.engines.vllm.serve import serve_pair
    from safedraft.pairs.load import choose_pair
    from safedraft.pairs.progress import show_progress

    arguments = list(context.args)
    if pair and pair.startswith("-"):  # no pair was named, and vLLM's options begin here
        arguments.insert(0, pair)
        pair = None
    use_adapter = not no_adapter
    spec = choose_pair(pair, target=target, draft=draft, adapter=adapter, use_adapter=use_adapter)
    config = options.with_settings(spec.config, settings) if settings else None
    with show_progress() as report:
        run = serve_pair(
            spec,
            config,
            arguments,
            requests_may_set_constants,
            _by_load(draft_tokens_up_to or ()),
            report,
        )
    run()


def _by_load(given: Iterable[str]) -> dict[int, int]:
    found: dict[int, int] = {}
    for one in given:
        load, _, drafted = one.partition(":")
        if not (load.isdigit() and drafted.isdigit()):
            raise SafeDraftError(f"--draft-tokens-up-to {one}: write REQUESTS:T, such as 8:4")
        found[int(load)] = int(drafted)
    return found
