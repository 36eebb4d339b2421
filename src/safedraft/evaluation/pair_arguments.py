"""The pairs that are evaluated: named by the arguments of a model, loaded once in a process."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from safedraft.core.assignments import parse_value, split_assignments
from safedraft.core.config import RiskConfig
from safedraft.core.errors import SafeDraftError
from safedraft.core.shared import SharedBatch
from safedraft.defenses import list_constants
from safedraft.engines import DEFAULT_ENGINE
from safedraft.engines.base import Capability, Engine
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.registry import PairSpec, choose_pair
from safedraft.pair.load import load_spec

if TYPE_CHECKING:
    from safedraft.pair import Pair

CUSTOM = "custom"
"""Pair name that means: the arguments ``target`` and ``draft`` name the models."""

OWN_ARGUMENTS = (
    *("defense", "label", "target", "draft", "adapter", "no_adapter"),
    *("template", "template_from", "other_base"),
    *("engine", "engine_options", "dtype", "device"),
)
"""Model arguments besides the constants of the method."""

TOGETHER = 8
"""Number of samples that are answered at once, where the engine decodes them together."""


class _SharingEngine:
    """An engine on which all requests of this process are decoded in one batch."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._batch = engine, SharedBatch(engine.batch())

    def batch(self) -> SharedBatch:
        return self._batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


@dataclass(frozen=True)
class PairArguments:
    """Arguments that name two models; equal arguments share one loaded pair."""

    name: str | None = None
    target: str | None = None
    draft: str | None = None
    adapter: str | None = None
    use_adapter: bool = True
    template: tuple[tuple[str, Any], ...] | None = None
    """Variables of the chat templates, by name."""
    template_from: str | None = None
    other_base: bool = False
    engine: str = DEFAULT_ENGINE
    engine_options: tuple[tuple[str, Any], ...] = ()
    """The engine's own options, by name."""

    def check(self) -> None:
        """Refuse impossible names and adapters before anything is loaded."""
        self._choose()

    def _choose(self) -> PairSpec:
        return choose_pair(
            self.name,
            target=self.target,
            draft=self.draft,
            adapter=self.adapter,
            use_adapter=self.use_adapter,
            template=None if self.template is None else dict(self.template),
            template_from=self.template_from,
            other_base=self.other_base,
        )

    def load(self, report: ReportProgress = silent) -> Pair:
        """Load the pair, or return it if it is loaded already."""
        with _load_lock:
            if self not in _pairs:
                pair = load_spec(
                    self._choose(), engine=self.engine, report=report, **dict(self.engine_options)
                )
                if Capability.TOGETHER in pair.engine.capabilities:
                    pair = replace(pair, engine=_SharingEngine(pair.engine))
                _pairs[self] = pair
            return _pairs[self]


_pairs: dict[PairArguments, Pair] = {}
_load_lock = threading.Lock()


def parse_pair_arguments(name: str, arguments: Mapping[str, Any]) -> PairArguments:
    """Read the model arguments that name the pair.

    Raises:
        SafeDraftError: an argument does not exist.
    """
    own = list_constants(str(arguments.get("defense", "ssd")))
    constants = [*RiskConfig.model_fields, *sorted(own - RiskConfig.model_fields.keys())]
    for argument in arguments:
        if argument not in (*OWN_ARGUMENTS, *constants):
            known = ", ".join((*OWN_ARGUMENTS, *constants))
            raise SafeDraftError(f"safedraft has no model argument {argument!r}; it has {known}")
    switches = {n: arguments.get(n, False) for n in ("no_adapter", "other_base")}
    for switch, value in switches.items():
        if not isinstance(value, bool):
            raise SafeDraftError(f"{switch} is true or false, not {value!r}")
    names = ("target", "draft", "adapter", "template_from", "engine")
    texts = {n: str(arguments[n]) for n in names if n in arguments}
    given = split_assignments("engine_options", str(arguments.get("engine_options", "")))
    options: dict[str, Any] = {n: parse_value(value) for n, value in given.items()}
    options |= {n: str(arguments[n]) for n in ("dtype", "device") if n in arguments}
    return PairArguments(
        None if name == CUSTOM else name,
        use_adapter=not switches["no_adapter"],
        other_base=switches["other_base"],
        template=_parse_template(arguments),
        engine_options=tuple(sorted(options.items())),
        **texts,
    )


def _parse_template(arguments: Mapping[str, Any]) -> tuple[tuple[str, Any], ...] | None:
    if "template" not in arguments:
        return None
    given = split_assignments("template", str(arguments["template"]))
    return tuple(sorted((name, parse_value(value)) for name, value in given.items()))
