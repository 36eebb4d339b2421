"""Options of sampling, as one object for each command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safedraft.cli import options
from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from safedraft.core.config import SamplingParams


def _option(text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel="Sampling")


@dataclass(frozen=True)
class SamplingChoice:
    """The sampling of a command's replies; each field is an option."""

    max_new_tokens: Annotated[int, _option("Maximum number of new tokens.")]
    temperature: Annotated[float, _option("Sampling temperature; 0 is greedy.")] = 0.0
    top_k: Annotated[
        int, _option("Keep the k most likely tokens of the composite; 0 keeps all.")
    ] = 0
    top_p: Annotated[float, _option("Keep this share of the composite's probability.")] = 1.0
    min_p: Annotated[
        float, _option("Keep the tokens that are this many times as likely as the likeliest.")
    ] = 0.0
    presence_penalty: Annotated[
        float, _option("Taken from the logit of every token of the reply so far.")
    ] = 0.0
    frequency_penalty: Annotated[
        float, _option("The same, once for each time that it was said.")
    ] = 0.0
    repetition_penalty: Annotated[
        float, _option("Divides the logit of every token of the prompt and the reply so far.")
    ] = 1.0
    seed: Annotated[int | None, _option("Seed of a sampled reply.")] = None
    stop: Annotated[
        list[str] | None, _option("A string that ends the reply; may be given again.")
    ] = None
    stop_token_ids: Annotated[
        list[int] | None,
        _option("The id of a token that ends the reply; may be given again.", "--stop-token-id"),
    ] = None
    json_schema: Annotated[
        Path | None,
        _option(
            "The reply is JSON that is valid under the JSON schema in this file, or a refusal.",
            metavar="FILE",
        ),
    ] = None

    @property
    def parameters(self) -> SamplingParams:
        """The choice as parameters of ``Pair.generate``.

        Raises:
            SafeDraftError: a value is out of range, or the schema cannot be read.
        """
        from safedraft.core.config import SamplingParams

        values = asdict(self)
        if file := values.pop("json_schema"):
            values["structured_outputs"] = {"json_schema": _read_schema(file)}
        return SamplingParams(**values)


def choose_sampling(*without: str, **defaults: Any) -> Callable[[Callable[..., None]], Any]:
    """Add the options of ``SamplingChoice``, as the parameter ``sampling``.

    Args:
        without: options to leave out.
        defaults: ``max_new_tokens``, and defaults that differ from the usual ones.
    """
    added = options.list_parameters(SamplingChoice, without, defaults)
    return options.collect("sampling", added, SamplingChoice)


def _read_schema(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise SafeDraftError(
            f"--json-schema {file}: {error.strerror}; name a file that can be read"
        ) from error
    except UnicodeDecodeError as error:
        raise SafeDraftError(f"--json-schema {file}: the file is not text in UTF-8") from error
