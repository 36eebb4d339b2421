"""``safedraft serve``: a server with the OpenAI API."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safedraft.cli import options
from safedraft.cli.models import PAIR_ARGUMENT, ModelChoice, PairArgument, choose_models
from safedraft.core.assignments import invalid_assignment, parse_assignments
from safedraft.core.errors import SafeDraftError
from safedraft.core.extras import require_extra

if TYPE_CHECKING:
    from safedraft.core.config import SSDConfig
    from safedraft.models.registry import PairSpec
    from safedraft.server.settings import ServerSettings

_SERVER = "Server"


class Allowed(StrEnum):
    """Features that help attackers, disabled unless the operator allows them."""

    PREFILL = "prefill"
    COMPLETIONS = "completions"
    TELEMETRY = "telemetry"
    CONSTANTS = "constants"


_SETTINGS = {
    Allowed.PREFILL: "allow_prefill",
    Allowed.COMPLETIONS: "allow_completions",
    Allowed.TELEMETRY: "allow_telemetry",
    Allowed.CONSTANTS: "requests_may_set_constants",
}
"""The server's setting for each of them."""


@choose_models(PAIR_ARGUMENT)
def serve(
    context: typer.Context,
    named: PairArgument = None,
    draft_tokens_up_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REQUESTS:T",
            help="For vllm: T while at most REQUESTS requests run. May be given again.",
            rich_help_panel="Method",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; one that is not local needs SAFEDRAFT_API_KEY.",
            rich_help_panel=_SERVER,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="Port to listen on; 0: any free one.", rich_help_panel=_SERVER
        ),
    ] = 8000,
    allow: Annotated[
        list[Allowed] | None,
        typer.Option(
            metavar="FEATURE",
            help="A feature that is off because it helps attackers: prefill (messages that begin "
            "the reply), completions (raw text at /v1/completions), telemetry (matches and schemes "
            "with a reply) or constants (the method's constants and shifts of chosen tokens in "
            "requests, which can disable the defense). May be given again.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    maxima: Annotated[
        list[str] | None,
        typer.Option(
            "--max",
            metavar="NAME=VALUE",
            help="A limit: body_bytes, body_seconds, messages, new_tokens, temperature, top_p, "
            "schema_bytes, stop_strings, stop_characters, replies, active, waiting, "
            "request_seconds, grace_seconds. May be given again.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    served_model_name: Annotated[
        str | None,
        typer.Option(
            help="Name of the model for clients. Default: the pair's.", rich_help_panel=_SERVER
        ),
    ] = None,
    allowed_origins: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="An origin of web pages whose scripts may call the server, or *. May be given "
            "again.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    guard_header: Annotated[
        bool,
        typer.Option(
            "--guard-header",
            help="Send X-SafeDraft-Guarded with each reply: whether a draft with a safety adapter "
            "takes part.",
            rich_help_panel=_SERVER,
        ),
    ] = False,
    playground: Annotated[
        bool,
        typer.Option(
            "--playground",
            help="Serve a page at /playground that shows the decision of every token; it allows "
            "prefill, telemetry and constants.",
            rich_help_panel=_SERVER,
        ),
    ] = False,
    *,
    models: ModelChoice,
) -> None:
    """Serve a pair to any client of the OpenAI API, every reply decoded with SSD.

    If the environment variable SAFEDRAFT_API_KEY is set, clients must send that key. With vllm,
    --set draft_tokens=N fixes T at any load, and --draft-tokens-up-to sets T by load; without
    both, T decreases with load.

    [dim]safedraft serve qwen2.5-coder --playground[/]

    [dim]safedraft serve qwen2.5-coder --engine vllm --max-num-seqs 16[/]
    """
    from pydantic import SecretStr

    from safedraft.server.settings import API_KEY, PLAYGROUND, Limits, ServerSettings, require_safe

    key = os.environ.get(API_KEY)
    require_safe(host, key)  # before anything is fetched or loaded
    arguments = list(context.args)
    if named and named.startswith("-"):  # no pair is named: vLLM's options begin here
        arguments.insert(0, named)
        named = None
    models = models.name_pair(named)
    spec, config = models.spec, models.config
    # With another model, the name of the pair would mislead clients.
    if served_model_name == "":
        raise SafeDraftError("--served-model-name is empty: give a name, or leave it out")
    usual = f"{spec.target} + {spec.draft}" if models.target or models.draft else spec.name
    name = served_model_name or usual
    by_load = _parse_draft_tokens(draft_tokens_up_to or ())
    if models.engine == "vllm":
        from safedraft.server.vllm.serve import refuse_features

        others = {"--max": maxima, "--playground": playground}
        features = [f"--allow {feature}" for feature in allow or ()]
        refuse_features([*features, *(other for other, given in others.items() if given)])
        arguments = ["--served-model-name", name, "--host", host, "--port", str(port), *arguments]
        if allowed_origins:
            arguments = ["--allowed-origins", json.dumps(allowed_origins), *arguments]
        may_set_constants = Allowed.CONSTANTS in (allow or ())
        engine_options = models.engine_options
        _serve_in_vllm(
            spec, config, arguments, may_set_constants, by_load, engine_options, guard_header
        )
        return
    if arguments:
        raise SafeDraftError(f"{arguments[0]}: there is no such option (safedraft serve --help)")
    require_extra("safedraft serve", "server", "fastapi", "uvicorn", "prometheus_client")
    allowed = {_SETTINGS[name]: True for name in allow or ()}
    server = ServerSettings(
        name=name,
        api_key=SecretStr(key) if key else None,
        guard_header=guard_header,
        allowed_origins=tuple(allowed_origins or ()),
        limits=Limits.model_validate(options.constants(maxima, Limits, "--max")),
        **(allowed | PLAYGROUND if playground else allowed),
    )
    _serve(models, server, host, port, by_load)


def _serve(
    models: ModelChoice,
    settings: ServerSettings,
    host: str,
    port: int,
    draft_tokens_up_to: dict[int, int],
) -> None:
    from safedraft.server.run import listen, serve_app

    listening = listen(host, port)  # errors come before models are loaded
    further: dict[str, Any] = (
        {"draft_tokens_up_to": draft_tokens_up_to} if draft_tokens_up_to else {}
    )
    serve_app(models.load(**further), settings, listening, options.say)


def _serve_in_vllm(
    spec: PairSpec,
    config: SSDConfig | None,
    arguments: Sequence[str],
    requests_may_set_constants: bool,
    draft_tokens_up_to: dict[int, int],
    engine_options: dict[str, Any],
    guard_header: bool,
) -> None:
    from safedraft.models.progress import show_progress
    from safedraft.server.vllm.serve import serve_pair

    with show_progress() as report:
        run = serve_pair(
            spec,
            config,
            arguments,
            requests_may_set_constants,
            draft_tokens_up_to,
            report,
            options=engine_options,
            guard_header=guard_header,
        )
    run()


def _parse_draft_tokens(limits: Iterable[str]) -> dict[int, int]:
    """Read ``REQUESTS:T``: the number of drafted tokens by the number of requests."""
    option, form = "--draft-tokens-up-to", "REQUESTS:T, such as 8:4"
    by_load: dict[int, int] = {}
    given = parse_assignments(option, limits, form=form, separator=":")
    for requests, drafted in given.items():
        if not (requests.isdecimal() and drafted.isdecimal()):
            raise invalid_assignment(option, f"{requests}:{drafted}", form=form)
        by_load[int(requests)] = int(drafted)
    return by_load
