"""``safedraft train-ada-probe``: train the probe of the defense ``ada_probe``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safedraft.cli import options
from safedraft.cli.models import ModelChoice, choose_models
from safedraft.cli.train_risk import show_checks
from safedraft.core.files import require_folder


@choose_models("settings")
def train_ada_probe(
    output: Annotated[Path, typer.Option(help="Folder of the probe; what it has is replaced.")],
    settings: Annotated[
        list[str] | None,
        options.set_option(f"A setting, e.g. requests=1000 ({options.TRAINING_PAGE})."),
    ] = None,
    harmful: options.Harmful = None,
    ordinary: options.Ordinary = None,
    *,
    models: ModelChoice,
) -> None:
    """Train a probe that reads the target while it answers, for comparison with SSD.

    It is the linear probe of Any-Depth Alignment (arXiv 2510.18081), and learns from the target's
    states at several depths of its replies, which are generated and cached. The defense is
    `ada_probe:probe=FOLDER`.

    [dim]safedraft train-ada-probe qwen2.5-coder --output my-probe[/]
    """
    from safedraft.models.probe_file import TARGET_PROBE, write_target_probe
    from safedraft.models.progress import show_stages
    from safedraft.prompts.drawn import identify
    from safedraft.training.ada_probe import train_target_probe
    from safedraft.training.config import AdaProbeConfig
    from safedraft.training.requests import Sources

    config = AdaProbeConfig.model_validate(options.constants(settings, AdaProbeConfig))
    sources, folder = Sources(harmful or (), ordinary or ()), output.expanduser()
    require_folder(folder)
    pair = models.load()
    try:
        with show_stages() as display:
            trained = train_target_probe(pair, config, display.counting, sources)
        write_target_probe(folder, trained.probe, identify(pair.target))
    finally:
        pair.close()
    show_checks(trained)
    typer.echo(str(folder / TARGET_PROBE))
