"""Python code that repeats a request."""

from __future__ import annotations

from collections.abc import Mapping

from safedraft.core.config import Constants, RiskConfig, Scheme, SSDConfig
from safedraft.models.registry import choose_pair, pairs
from safedraft.pair import Pair
from safedraft.server.playground.turn import PageRequest


def write_snippet(pair: Pair, request: PageRequest) -> str:
    """Write code that repeats a request, including every constant and the seed.

    Args:
        pair: the pair that answered; a registered one is loaded by its name.
        request: the request.
    """
    arguments = "messages, sampling=sampling"
    kind, own = RiskConfig if pair.probe else SSDConfig, request.config.model_dump()
    alone = f"print(pair.generate({arguments}, rule='target_only').text)"
    lines = [
        "import safedraft",
        "",
        f"pair = safedraft.load_pair({_write_load_arguments(pair)})",
        "messages = [",
        *(f"    {dict(message)!r}," for message in request.messages),
        "]",
        *_write_call("config", kind(**{n: v for n, v in own.items() if n in kind.model_fields})),
        *_write_call("sampling", request.sampling),
        f"reply = pair.generate({arguments}, config=config)",
        "print(reply.text)",
        *([alone] if request.compare else []),
    ]
    return "\n".join(lines) + "\n"


def _write_load_arguments(pair: Pair) -> str:
    """Write the arguments of ``load_pair`` for the same models, adapter and system prompts."""
    spec = pair.spec or choose_pair(target=pair.target.name, draft=pair.draft.name)
    registered = pairs().get(spec.name)
    names = ("target", "draft", "adapter", "template", "template_from", "other_base")
    own = {name: getattr(spec, name) for name in names}
    if registered is None:
        accepted = {"use_adapter": False} if spec.bare_draft else {}
        return _write_arguments({name: value for name, value in own.items() if value} | accepted)
    arguments = {name: value for name, value in own.items() if value != getattr(registered, name)}
    if arguments.get("adapter", "") is None:
        del arguments["adapter"]
        arguments["use_adapter"] = False
    return ", ".join(part for part in (repr(spec.name), _write_arguments(arguments)) if part)


def _write_arguments(arguments: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _write_call(variable: str, values: Constants) -> list[str]:
    constants = ((field, getattr(values, field)) for field in type(values).model_fields)
    return [
        f"{variable} = safedraft.{type(values).__name__}(",
        *(f"    {field}={_write_value(value)}," for field, value in constants),
        ")",
    ]


def _write_value(value: object) -> str:
    return f"safedraft.Scheme.{value.name}" if isinstance(value, Scheme) else repr(value)
