"""``safedraft train-risk``: train the probe that reads the risk of a request from a pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import copytree, ignore_patterns
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from safedraft.cli import options
from safedraft.cli.models import ModelChoice, choose_models
from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from safedraft.training.config import RiskTrainingConfig
    from safedraft.training.requests import Sources
    from safedraft.training.risk import TrainedProbe


@choose_models("no_adapter", "settings")
def train_risk(
    settings: Annotated[
        list[str] | None,
        options.set_option(f"A setting, e.g. false_alarms=0.01 ({options.TRAINING_PAGE})."),
    ] = None,
    harmful: options.Harmful = None,
    ordinary: options.Ordinary = None,
    *,
    models: ModelChoice,
) -> None:
    """Train the probe from which SSD knows the risk of a request, and write it beside the adapter.

    It is a small network that is given the last hidden states of draft and target, trained on
    harmful and harmless requests in the same surroundings; a second one reads the draft alone, for
    other targets. The adapter is not changed. A pair whose adapter has a probe decodes by the rule
    `risk`.

    [dim]safedraft train-risk qwen2.5-coder --adapter my-adapter[/]
    """
    from safedraft.training.config import RiskTrainingConfig
    from safedraft.training.requests import Sources

    config = RiskTrainingConfig.model_validate(options.constants(settings, RiskTrainingConfig))
    sources = Sources(harmful or (), ordinary or ())
    typer.echo(str(train_beside(models, config, sources)))


def train_beside(
    models: ModelChoice,
    config: RiskTrainingConfig,
    sources: Sources,
) -> Path:
    """Train a probe, write it and its checks beside the adapter, show them, and return the file.

    Raises:
        SafeDraftError: the pair has no adapter, or its adapter is not in a folder of the user.
    """
    from safedraft.models.fetch import fetch
    from safedraft.models.fingerprint import fingerprint
    from safedraft.models.probe_file import PROBE, ProbeFile, write_probe
    from safedraft.models.progress import show_stages
    from safedraft.training.risk import train_probes
    from safedraft.training.risk_card import write_risk_section

    if models.spec.adapter is None:
        raise SafeDraftError("a risk probe belongs to an adapter: name one with --adapter")
    folder = _find_folder(models.spec.adapter)
    with TemporaryDirectory() as bare:  # a probe of other weights would not let the pair load
        copytree(folder, bare, ignore=ignore_patterns(PROBE), dirs_exist_ok=True)
        pair = replace(models, adapter=bare).load()
        try:
            with show_stages() as display:
                trained = train_probes(pair, config, display.counting, sources)
        finally:
            pair.close()
    target = {"target": fingerprint(fetch(models.spec.target))}
    write_probe(folder, ProbeFile(trained.draft.probe, trained.both.probe, target))
    write_risk_section(folder, trained)
    show_checks(trained.both)
    return folder / PROBE


def _find_folder(adapter: str) -> Path:
    """The folder of an adapter; it must be a local folder of the user."""
    from safedraft.models.fetch import fetch_adapter
    from safedraft.models.registry import shipped_adapters

    if shipped := shipped_adapters().get(adapter):
        raise SafeDraftError(
            f"the adapter {adapter} comes with SafeDraft, and so does its probe: copy the folder "
            f"{shipped} and name the copy with --adapter"
        )
    if not Path(adapter).expanduser().is_dir():
        raise SafeDraftError(
            f"--adapter {adapter}: a probe is written beside its adapter: download it to a folder "
            "and name that"
        )
    return fetch_adapter(adapter)


def show_checks(trained: TrainedProbe) -> None:
    """Show how many held-out conversations are called risky, and those of sources left out."""
    from rich.console import Console
    from rich.table import Table

    counts = ("risky", "by words alone", "of")
    console = Console(stderr=True, highlight=False)
    table = Table("held-out requests", "surroundings", *counts, box=None, pad_edge=False)
    for cell in trained.checks:
        table.add_row(*map(str, cell))
    console.print(table)
    table = Table("trained without", "requests of it", *counts, box=None, pad_edge=False)
    for source, harmful, *numbers in trained.left_out:
        table.add_row(source, "harmful" if harmful else "harmless", *map(str, numbers))
    if trained.left_out:
        console.print(table)
