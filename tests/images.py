"""The files of ``docker/``, read for the tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker/compose.yaml").read_text("utf-8"))


def instructions(service: str) -> list[tuple[str, str]]:
    """The instructions of a service's Dockerfile: their names and what follows."""
    file = ROOT / COMPOSE["services"][service]["build"]["dockerfile"]
    text = re.sub(r"^#.*\n", "", file.read_text("utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines) if name]


def command_of(service: str) -> list[str]:
    """The words that a service runs."""
    (entry,) = [rest for name, rest in instructions(service) if name == "ENTRYPOINT"]
    return [*json.loads(entry), *map(str, COMPOSE["services"][service]["command"])]


def parse(service: str) -> tuple[dict[str, Any], list[str]]:
    """What ``safedraft serve`` reads of a service's command: its own options, and the rest."""
    from typer.main import get_command

    from safedraft.cli import app

    program, name, *words = command_of(service)
    assert program == "safedraft"
    group: Any = get_command(app)
    context = group.commands[name].make_context(name, words)
    return context.params, context.args
