"""Options that several commands share, and the pair they name."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel

from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from safedraft.pair import Pair

_MODELS = "Models"
_SAMPLING = "Sampling"

PairName = Annotated[
    str | None,
    typer.Option(
        "--pair", help="A registered pair (see: safedraft pairs).", rich_help_panel=_MODELS
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        help="Another target: a registered model, a folder, or a hub id owner/name\\[@revision].",
        rich_help_panel=_MODELS,
    ),
]
Draft = Annotated[
    str | None, typer.Option(help="Another draft, named likewise.", rich_help_panel=_MODELS)
]
Adapter = Annotated[
    str | None,
    typer.Option(
        help="A LoRA adapter for the draft (safetensors): one that comes with SafeDraft, a folder, "
        "or a hub id.",
        rich_help_panel=_MODELS,
    ),
]
NoAdapter = Annotated[
    bool,
    typer.Option(
        "--no-adapter", help="The bare draft, without its adapter.", rich_help_panel=_MODELS
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="auto, bfloat16, float16 or float32, of both models.", rich_help_panel=_MODELS
    ),
]
Device = Annotated[
    str,
    typer.Option(help="auto, cpu, cuda:0 … for both models.", rich_help_panel=_MODELS),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="NAME=VALUE",
        help="A constant of the method, e.g. alpha_union=2.0 (see: safedraft pairs --constants).",
        rich_help_panel="Method",
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option(help="Most tokens in a reply.", rich_help_panel=_SAMPLING)
]
Temperature = Annotated[float, typer.Option(help="0 is greedy.", rich_help_panel=_SAMPLING)]
TopK = Annotated[
    int,
    typer.Option(help="Cut the composite to its k best; 0 keeps all.", rich_help_panel=_SAMPLING),
]
TopP = Annotated[
    float, typer.Option(help="Cut the composite to this share.", rich_help_panel=_SAMPLING)
]
Seed = Annotated[
    int | None, typer.Option(help="Repeats a sampled reply.", rich_help_panel=_SAMPLING)
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        help="A string that ends the reply; may be given again.", rich_help_panel=_SAMPLING
    ),
]
System = Annotated[str | None, typer.Option(help="A system prompt for both models.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def sampling_params(
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
    stop: list[str] | None,
) -> SamplingParams:
    """The options of the panel "Sampling", validated."""
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
    )


def with_settings(config: SSDConfig, settings: list[str] | None) -> SSDConfig:
    """``config`` with what ``--set NAME=VALUE`` says; ``model_fields_set`` are those names.

    Raises:
        SafeDraftError: a name that is no constant.
        ValidationError: a value out of its range.
    """
    changes = constants(settings)
    changed = SSDConfig.model_validate(config.model_dump() | changes)
    return SSDConfig.model_construct(_fields_set=set(changes), **changed.model_dump())


def constants(
    settings: list[str] | None, kind: type[BaseModel] = SSDConfig, option: str = "--set"
) -> dict[str, Any]:
    """What ``--set NAME=VALUE``, or another option, says by name; values are not validated.

    Raises:
        SafeDraftError: a name that is no field of ``kind``.
    """
    fields = kind.model_fields
    changes: dict[str, Any] = {}
    for setting in settings or ():
        name, equals, value = setting.partition("=")
        if not equals or name not in fields:
            known = ", ".join(fields)
            raise SafeDraftError(f"{option} {setting}: write NAME=VALUE with one of {known}")
        whole = fields[name].annotation is int and re.fullmatch("-?[0-9]+", value)
        changes[name] = int(value) if whole else value
    return changes


def require_extra(command: str, *modules: str, extra: str = "eval") -> None:
    """Refuse a command whose libraries are not installed, before anything else is done.

    Raises:
        SafeDraftError: one of ``modules`` is missing; names the extra that brings it.
    """
    for module in modules:
        if find_spec(module) is None:
            raise SafeDraftError(f"{command} needs {module}: pip install 'safedraft[{extra}]'")


def require_planned(option: str, suite: str, suites: Sequence[str]) -> None:
    """Refuse what is said of a suite that is not run, before it is ignored.

    Raises:
        SafeDraftError: it is none of ``suites``.
    """
    if suite not in suites:
        raise SafeDraftError(f"{option}: {suite} is not run, only {', '.join(suites)}")


def say(message: str) -> None:
    """One line of text on standard error."""
    from rich.console import Console

    Console(stderr=True, highlight=False).print(message, soft_wrap=True, markup=False)


def standard_input() -> str:
    """All of standard input as text.

    Raises:
        SafeDraftError: there is none.
    """
    if sys.stdin is None:
        raise SafeDraftError("standard input is closed: give the prompt as an argument")
    return sys.stdin.read()


def open_pair(
    name: str | None,
    target: str | None,
    draft: str | None,
    adapter: str | None,
    no_adapter: bool,
    dtype: str,
    device: str,
    settings: list[str] | None = None,
) -> Pair:
    """Load the pair that the panel "Models" names, showing the progress of downloads."""
    from safedraft.load import choose_pair, load_spec
    from safedraft.models.progress import show_progress

    use_adapter = not no_adapter
    spec = choose_pair(name, target=target, draft=draft, adapter=adapter, use_adapter=use_adapter)
    config = with_settings(spec.config, settings)  # refused before anything is fetched or loaded
    with show_progress() as report:
        return load_spec(spec, config=config, dtype=dtype, device=device, report=report)
