"""Write docs/reference.md: the commands, the settings, and the environment variables.

Commands are read from the command line's own definition, settings from their classes. Only
``ENVIRONMENT`` is written here.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

from pydantic import BaseModel
from rich.text import Text
from typer.models import ArgumentInfo, OptionInfo

from safedraft.cli import app
from safedraft.cli.models import ModelChoice
from safedraft.cli.usage import innermost, write_value
from safedraft.core.config import RiskConfig, SamplingParams, StructuredOutputs
from safedraft.defenses.ada_probe import ProbingConfig
from safedraft.defenses.ada_rethinking import RethinkingConfig
from safedraft.defenses.guard_filter import GuardConfig
from safedraft.models.registry import PairSpec
from safedraft.rules.easd import EASDConfig
from safedraft.rules.ensemble import EnsembleConfig
from safedraft.server.settings import Limits
from safedraft.training.config import AdaProbeConfig, RiskTrainingConfig, TrainingConfig

SETTINGS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    (
        "The method",
        "`--set NAME=VALUE`, `config` in Python and in a pair's file. The last five are those of "
        "the rule `risk`; SSD alone has the others.",
        RiskConfig,
    ),
    ("The rule easd", "`config` in Python, and `--defense easd:NAME=VALUE`.", EASDConfig),
    ("The rule ensemble_weight", "The same for `ensemble_weight`.", EnsembleConfig),
    ("Sampling", "Keywords of `Pair.generate`, and `SamplingParams`.", SamplingParams),
    (
        "Structured output",
        "`structured_outputs` of the sampling, and `StructuredOutputs`.",
        StructuredOutputs,
    ),
    ("A pair's file", "One table for each pair ([add a pair](add-a-pair.md)).", PairSpec),
    ("Training", "`safedraft train-draft --set NAME=VALUE`.", TrainingConfig),
    ("Training of the risk probe", "`safedraft train-risk --set NAME=VALUE`.", RiskTrainingConfig),
    (
        "Training of the probe of ada_probe",
        "`safedraft train-ada-probe --set NAME=VALUE`.",
        AdaProbeConfig,
    ),
    ("The defense ada_probe", "`--defense ada_probe:NAME=VALUE`.", ProbingConfig),
    ("The defense ada_rethinking", "The same for `ada_rethinking`.", RethinkingConfig),
    ("The defense guard_filter", "The same for `guard_filter`.", GuardConfig),
    ("Limits of the server", "`safedraft serve --max NAME=VALUE`.", Limits),
)

ENVIRONMENT = {
    "SAFEDRAFT_CACHE": "Folder of fetched models, converted weights and compiled programs.",
    "SAFEDRAFT_CONFIG": "Configuration folder, whose `pairs/*.toml` hold your own pairs.",
    "SAFEDRAFT_API_KEY": "Key that `safedraft serve` asks of its clients; needed for any `--host` "
    "but this machine's own.",
    "SAFEDRAFT_JUDGE_API_KEY": "Key for a judge at an endpoint.",
    "SAFEDRAFT_GUARD_API_KEY": "Key for the guard of the defense `guard_filter` and of the judge "
    "`guard`.",
    "HF_HUB_OFFLINE": "Set to 1, no model hub is asked.",
    "HF_TOKEN": "Key for models of the hub that are not public.",
    "HF_HOME": "Folder of the hub's own cache.",
}

NOT_IN_TESTS = {
    "safedraft doctor Qwen/": "not run: needs a hub (the target)",
    "safedraft doctor qwen2.5-coder-1.5b-instruct": "not run: needs a hub (the default pair)",
    "safedraft judge-check --labels pyrit": "not run: needs a hub (the labels of PyRIT)",
    "safedraft serve qwen2.5-coder --engine vllm": "run by make test-vllm",
}
"""How an example begins that the tests of the pages cannot run, and the mark that it gets."""

HEAD = """\
# Reference

<!-- Made by `make reference` from the code. -->

`safedraft --help` and `safedraft COMMAND --help` show the same at any width.
"""


def plain(markup: str | None) -> str:
    """A help text without its markup, on one line."""
    return " ".join(Text.from_markup(markup or "").plain.split())


def row(*cells: str) -> str:
    """One row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def code(text: str) -> str:
    """A piece of code; nothing for an empty text."""
    return f"`{text}`" if text else ""


def show(value: Any) -> str:
    """A default value, as a user would write it; nothing where there is none."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, list | tuple):
        return " ".join(map(show, value))
    if value is None or value is False or callable(value):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).lower() if value is True else str(value)


def command_sections() -> Iterator[str]:
    """Yield one section for each command, and one for the options that several have."""
    shared = frozenset(parameters(ModelChoice))
    for name, text, command in commands():
        yield f"### safedraft {name}"
        for paragraph in text.split("\n\n"):
            example = re.fullmatch(r"\[dim\](.*)\[/\]", paragraph, re.DOTALL)
            yield show_example(plain(example[1])) if example else plain(paragraph)
        yield table(parameters(command), shared)
    yield "### Options of the models"
    yield "Each command lists those that it has."
    yield table(parameters(ModelChoice))


def show_example(command: str) -> str:
    """A block of a shell, with its mark if it has one."""
    marks = [mark for begin, mark in NOT_IN_TESTS.items() if command.startswith(begin)]
    return "\n".join([*(f"<!-- {mark} -->" for mark in marks), f"```sh\n{command}\n```"])


def commands() -> Iterator[tuple[str, str, Callable[..., None]]]:
    """Yield the name, the help and the function of each command; groups come last."""
    for command in app.registered_commands:
        yield command.name or command.callback.__name__, command.help or "", command.callback
    for group in app.registered_groups:
        whole = group.typer_instance.registered_callback
        yield group.name, whole.help, whole.callback
        for command in group.typer_instance.registered_commands:
            yield f"{group.name} {command.name}", command.help, command.callback


class Parameter(NamedTuple):
    """An argument or option."""

    usage: str
    default: str
    meaning: str


def table(parameters: Iterable[Parameter], shared: Collection[Parameter] = frozenset()) -> str:
    """The rows of parameters; those in ``shared`` are one row that leads to their own table."""
    rows, names = [], []
    for parameter in parameters:
        if parameter in shared:
            names.append(code(parameter.usage.split()[0].rstrip(",")))
        else:
            rows.append(row(code(parameter.usage), parameter.default, parameter.meaning))
    if names:
        rows.append(row(", ".join(names), "", "[Options of the models](#options-of-the-models)"))
    return "\n".join([row("argument or option", "default", "meaning"), "|---|---|---|", *rows])


def parameters(command: Callable[..., None]) -> Iterator[Parameter]:
    """Yield the arguments and options of a command."""
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        kind, *notes = get_args(hints[parameter.name]) or (None,)
        for note in notes:
            if isinstance(note, OptionInfo | ArgumentInfo):
                required = parameter.default in (parameter.empty, ...)
                default = "required" if required else code(show(parameter.default))
                written = usage(parameter.name, innermost(kind), note)
                yield Parameter(written, default, plain(note.help))


def usage(name: str, kind: Any, note: OptionInfo | ArgumentInfo) -> str:
    """How an argument or option is written."""
    value = write_value(name, kind, note)
    if isinstance(note, ArgumentInfo):
        return value
    usual = "--" + name.replace("_", "-")
    # Without a default of its own, Typer keeps the first name in the place of the default.
    named = [name for name in (note.default, *(note.param_decls or ())) if isinstance(name, str)]
    names = ", ".join(named or [f"{usual}/--no-{usual[2:]}" if kind is bool else usual])
    if kind is bool:
        return names
    return f"{names} {value}"


def setting_sections() -> Iterator[str]:
    """Yield one section for each class of settings."""
    for title, where, kind in SETTINGS:
        yield f"### {title}"
        yield where
        lines = [row("name", "default", "meaning"), "|---|---|---|"]
        for name, field in kind.model_fields.items():
            if kind is PairSpec and name == "name":
                continue  # the name of the table
            default = field.get_default(call_default_factory=True)
            value = "required" if field.is_required() else code(show(default))
            described = "the constants above" if isinstance(default, BaseModel) else value
            lines.append(row(code(name), described, plain_docstring(field.description)))
        yield "\n".join(lines)


def plain_docstring(text: str | None) -> str:
    """The docstring of a field on one line, with Markdown's marks for code."""
    return " ".join((text or "").replace("``", "`").split())


def page() -> str:
    """The whole page."""
    variables = [row("variable", "meaning"), "|---|---|"]
    variables += [row(code(name), text) for name, text in ENVIRONMENT.items()]
    sections = [
        HEAD.rstrip(),
        "## Commands",
        *command_sections(),
        "## Settings",
        *setting_sections(),
        "## Environment variables",
        "\n".join(variables),
    ]
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="the page to write")
    parser.parse_args().file.write_text(page(), encoding="utf-8")
