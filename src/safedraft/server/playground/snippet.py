"""A request as Python code that repeats it."""

from __future__ import annotations

from collections.abc import Mapping

from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.models.registry import choose_pair, pairs
from safedraft.pair import Pair
from safedraft.server.playground.turn import Asked


def snippet(pair: Pair, asked: Asked) -> str:
    """What decodes a request again, every constant and the seed included.

    Args:
        pair: what decoded it; a registered one is loaded by its name.
        asked: the request.
    """
    given = "messages, sampling=sampling"
    alone = f"print(pair.generate({given}, rule='target_only').text)"
    lines = [
        "import safedraft",
        "",
        f"pair = safedraft.load_pair({_loading(pair)})",
        "messages = [",
        *(f"    {dict(message)!r}," for message in asked.messages),
        "]",
        *_call("config", "SSDConfig", asked.config),
        *_call("sampling", "SamplingParams", asked.sampling),
        f"reply = pair.generate({given}, config=config)",
        "print(reply.text)",
        *([alone] if asked.compare else []),
    ]
    return "\n".join(lines) + "\n"


def _loading(pair: Pair) -> str:
    """What ``load_pair`` is called with for the same models, adapter and system prompts."""
    spec = pair.spec or choose_pair(target=pair.target.name, draft=pair.draft.name)
    registered = pairs().get(spec.name)
    own = {name: getattr(spec, name) for name in ("target", "draft", "adapter")}
    if registered is None:
        return _arguments({name: value for name, value in own.items() if value})
    given = {name: value for name, value in own.items() if value != getattr(registered, name)}
    if given.get("adapter", "") is None:
        del given["adapter"]
        given["use_adapter"] = False
    return ", ".join(part for part in (repr(spec.name), _arguments(given)) if part)


def _arguments(given: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in given.items())


def _call(variable: str, kind: str, values: SSDConfig | SamplingParams) -> list[str]:
    constants = ((field, getattr(values, field)) for field in type(values).model_fields)
    return [
        f"{variable} = safedraft.{kind}(",
        *(f"    {field}={_spelt(value)}," for field, value in constants),
        ")",
    ]


def _spelt(value: object) -> str:
    return f"safedraft.Scheme.{value.name}" if isinstance(value, Scheme) else repr(value)
