"""A request as Python code that repeats it."""

from __future__ import annotations

from safedraft.config import SamplingParams, Scheme, SSDConfig
from safedraft.errors import SafeDraftError
from safedraft.pairs.pair import Pair
from safedraft.pairs.registry import find_pair
from safedraft.server.playground.turn import Asked


def snippet(pair: Pair, name: str, asked: Asked) -> str:
    """What decodes a request again, every constant and the seed included.

    Args:
        pair: what decoded it; with a registered pair's models it is loaded by its name.
        name: the pair's.
        asked: the request.
    """
    given = "messages, sampling=sampling"
    alone = f"print(pair.generate({given}, decoder=target_only).text)"
    lines = [
        "import safedraft",
        *(["from safedraft.defences.target_only import target_only"] if asked.compare else []),
        "",
        f"pair = safedraft.load_pair({_loading(pair, name)})",
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


def _loading(pair: Pair, name: str) -> str:
    try:
        spec = find_pair(name)
    except SafeDraftError:
        spec = None
    if spec and (spec.target, spec.draft) == (pair.target.name, pair.draft.name):
        return repr(name)
    return f"target={pair.target.name!r}, draft={pair.draft.name!r}"


def _call(variable: str, kind: str, values: SSDConfig | SamplingParams) -> list[str]:
    constants = ((field, getattr(values, field)) for field in type(values).model_fields)
    return [
        f"{variable} = safedraft.{kind}(",
        *(f"    {field}={_spelt(value)}," for field, value in constants),
        ")",
    ]


def _spelt(value: object) -> str:
    return f"safedraft.Scheme.{value.name}" if isinstance(value, Scheme) else repr(value)
