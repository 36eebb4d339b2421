"""Options that several commands share."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safedraft.core.assignments import parse_assignment
from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from safedraft.core.config import SamplingParams


_SAMPLING, _DATA = "Sampling", "Data"
TRAINING_PAGE = 'see the page "Training a draft" of the documentation'


def set_option(text: str, panel: str | None = None) -> Any:
    """The option ``--set NAME=VALUE`` with its help text, in a panel of the command's help."""
    return typer.Option("--set", "-s", metavar="NAME=VALUE", help=text, rich_help_panel=panel)


Set = Annotated[
    list[str] | None,
    set_option(
        "A constant of the method, e.g. alpha_union=2.0 (see: safedraft pairs --constants).",
        "Method",
    ),
]
Harmful = Annotated[
    list[str] | None,
    typer.Option(
        help="Harmful requests that replace SafeDraft's own: a source's name, or a file "
        "(JSON, JSON lines, or text with one per line); may be given again. 'own' keeps "
        "SafeDraft's own beside them.",
        rich_help_panel=_DATA,
    ),
]
Ordinary = Annotated[
    list[str] | None,
    typer.Option(
        help="Ordinary prompts that replace SafeDraft's own, named in the same ways.",
        rich_help_panel=_DATA,
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option(help="Maximum number of new tokens.", rich_help_panel=_SAMPLING)
]
Temperature = Annotated[
    float, typer.Option(help="Sampling temperature; 0 is greedy.", rich_help_panel=_SAMPLING)
]
TopK = Annotated[
    int,
    typer.Option(
        help="Keep the k most likely tokens of the composite; 0 keeps all.",
        rich_help_panel=_SAMPLING,
    ),
]
TopP = Annotated[
    float,
    typer.Option(help="Keep this share of the composite's probability.", rich_help_panel=_SAMPLING),
]
MinP = Annotated[
    float,
    typer.Option(
        help="Keep the tokens that are this many times as likely as the likeliest.",
        rich_help_panel=_SAMPLING,
    ),
]
PresencePenalty = Annotated[
    float,
    typer.Option(
        help="Taken from the logit of every token of the reply so far.", rich_help_panel=_SAMPLING
    ),
]
FrequencyPenalty = Annotated[
    float,
    typer.Option(help="The same, once for each time that it was said.", rich_help_panel=_SAMPLING),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(
        help="Divides the logit of every token of the prompt and the reply so far.",
        rich_help_panel=_SAMPLING,
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="Seed of a sampled reply.", rich_help_panel=_SAMPLING)
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        help="A string that ends the reply; may be given again.", rich_help_panel=_SAMPLING
    ),
]
StopTokenIds = Annotated[
    list[int] | None,
    typer.Option(
        "--stop-token-id",
        help="The id of a token that ends the reply; may be given again.",
        rich_help_panel=_SAMPLING,
    ),
]
Rule = Annotated[
    str | None,
    typer.Option(
        help="The rule by which tokens are decided, in place of the pair's own: ssd is SSD alone, "
        "target_only the target alone (see the page "
        '"The method, and where it stands in the code" of the documentation).',
    ),
]
JsonSchema = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The reply is JSON that is valid under the JSON schema in this file, or a refusal.",
        rich_help_panel=_SAMPLING,
    ),
]
System = Annotated[str | None, typer.Option(help="A system prompt for both models.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def require_rule(name: str | None) -> None:
    """Refuse a rule that does not exist, before models are loaded.

    Raises:
        SafeDraftError: no rule has this name; the message lists all rules.
    """
    from safedraft.pair import guards

    if name is not None:
        guards.require_rule(name)


def sampling_params(
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    presence_penalty: float,
    frequency_penalty: float,
    repetition_penalty: float,
    seed: int | None,
    stop: list[str] | None,
    stop_token_ids: list[int] | None = None,
    json_schema: Path | None = None,
) -> SamplingParams:
    """Validate the options of the panel "Sampling".

    Raises:
        SafeDraftError: a value is out of range, or the schema cannot be read.
    """
    from safedraft.core.config import SamplingParams

    schema = _read_schema(json_schema) if json_schema else None
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        stop_token_ids=tuple(stop_token_ids or ()),
        structured_outputs=None if schema is None else {"json_schema": schema},
    )


def _read_schema(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise SafeDraftError(
            f"--json-schema {file}: {error.strerror}; name a file that can be read"
        ) from error
    except UnicodeDecodeError as error:
        raise SafeDraftError(f"--json-schema {file}: the file is not text in UTF-8") from error


def constants(
    settings: list[str] | None, kind: type[BaseModel], option: str = "--set"
) -> dict[str, Any]:
    """Read ``--set NAME=VALUE``, or another option of that form; values are not validated.

    Raises:
        SafeDraftError: a name is not a field of ``kind``.
    """
    fields = kind.model_fields
    changes: dict[str, Any] = {}
    for setting in settings or ():
        name, value = parse_assignment(option, setting, names=fields)
        whole = fields[name].annotation is int and re.fullmatch("-?[0-9]+", value)
        changes[name] = int(value) if whole else value
    return changes


def require_planned(option: str, suite: str, suites: Sequence[str]) -> None:
    """Raise if an option names a suite that is not run, instead of ignoring it.

    Raises:
        SafeDraftError: ``suite`` is not in ``suites``.
    """
    if suite not in suites:
        raise SafeDraftError(f"{option}: {suite} is not run, only {', '.join(suites)}")


def say(message: str) -> None:
    """Print one line of text on standard error."""
    from rich.console import Console

    Console(stderr=True, highlight=False).print(message, soft_wrap=True, markup=False)


def read_standard_input() -> str:
    """Read all of standard input as text.

    Raises:
        SafeDraftError: standard input is closed.
    """
    if sys.stdin is None:
        raise SafeDraftError("standard input is closed: give the prompt as an argument")
    return sys.stdin.read()
