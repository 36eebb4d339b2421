"""Options that choose the models and the engine, as one object for each command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safedraft.cli import options
from safedraft.core.assignments import parse_assignments, parse_value
from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from safedraft.core.config import RiskConfig
    from safedraft.models.registry import PairSpec
    from safedraft.pair import Pair

_PANEL = "Models"

PAIR_ARGUMENT = "pair_argument"
"""Name of the argument PAIR, for commands that leave it out."""

PairArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="PAIR", help="A registered pair, as with --pair. Default: the default pair."
    ),
]
"""The pair as a command's argument, for ``ModelChoice.name_pair``."""

TEMPLATES = ("other_base", "template", "template_from")
"""Options that say how an adapter's draft is used."""

_NO_OPTIONS = ("spec", "config", "engine", "report")
"""Parameters of loading that are options of no engine."""

ENGINE = ("dtype", "draft_dtype", "device", "engine", "engine_option")
"""Options that say how the models are run."""


@dataclass(frozen=True)
class ModelChoice:
    """The choice of two models, an engine and the constants; each field is an option.

    Raises ``SafeDraftError`` for an empty name, and for two values of an engine's option.
    """

    pair: Annotated[
        str | None,
        typer.Option(
            "--pair", help="A registered pair (see: safedraft pairs).", rich_help_panel=_PANEL
        ),
    ] = None
    target: Annotated[
        str | None,
        typer.Option(
            help="Another target: a registered model, a folder, a GGUF file, or a hub id "
            "owner/name\\[@revision].",
            rich_help_panel=_PANEL,
        ),
    ] = None
    draft: Annotated[
        str | None,
        typer.Option(help="Another draft, named in the same ways.", rich_help_panel=_PANEL),
    ] = None
    adapter: Annotated[
        str | None,
        typer.Option(
            help="A LoRA adapter for the draft (safetensors): one that comes with SafeDraft, a "
            "folder, or a hub id.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    no_adapter: Annotated[
        bool,
        typer.Option(
            "--no-adapter",
            help="Use the bare draft, without its adapter.",
            rich_help_panel=_PANEL,
        ),
    ] = False
    other_base: Annotated[
        bool,
        typer.Option(
            "--other-base",
            help="Accept a draft of the same architecture with other weights than those that the "
            "adapter was trained on.",
            rich_help_panel=_PANEL,
        ),
    ] = False
    template: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A variable of the chat templates, such as enable_thinking=false; may be given "
            "again. By default those that the adapter was trained with.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    template_from: Annotated[
        str | None,
        typer.Option(
            help="Whose chat template both models have: target or draft; own: each its own.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    dtype: Annotated[
        str,
        typer.Option(
            help="Dtype of both models: auto, bfloat16, float16 or float32; on the engine cpu "
            "int8 or int4.",
            rich_help_panel=_PANEL,
        ),
    ] = "auto"
    draft_dtype: Annotated[
        str | None,
        typer.Option(
            help="Dtype of the draft if it differs; on processors also int8 or int4.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    device: Annotated[
        str,
        typer.Option(help="Device of both models: auto, cpu, cuda:0 …", rich_help_panel=_PANEL),
    ] = "auto"
    engine: Annotated[
        str,
        typer.Option(
            help="Engine that runs the models: cpu (Llama-like models with 8-bit weights), "
            "transformers, vllm, or another installed one; auto: cpu where it can, else "
            "transformers.",
            rich_help_panel=_PANEL,
        ),
    ] = "auto"
    engine_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="An option of the engine, such as vLLM's enforce_eager=true; may be given again.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    settings: options.Set = None

    def __post_init__(self) -> None:
        """Refuse what would be ignored: in scripts, a variable that is not set is an empty text."""
        for item in fields(self):
            if getattr(self, item.name) == "":
                option = f"--{item.name.replace('_', '-')}"
                raise SafeDraftError(f"{option} is empty: give it a value, or leave it out")
        _ = self.engine_options

    def name_pair(self, pair: str | None) -> ModelChoice:
        """The choice with the pair that a command's argument names, if it names one.

        Raises:
            SafeDraftError: ``--pair`` names another one.
        """
        if pair and self.pair and pair != self.pair:
            raise SafeDraftError(f"{pair} and --pair {self.pair}: name one pair")
        return self if pair is None else replace(self, pair=pair)

    @property
    def spec(self) -> PairSpec:
        """The chosen pair.

        Raises:
            SafeDraftError: the pair is unknown, or two options contradict each other.
        """
        from safedraft.models.registry import choose_pair

        return choose_pair(
            self.pair,
            target=self.target,
            draft=self.draft,
            adapter=self.adapter,
            use_adapter=not self.no_adapter,
            template=parse_variables(self.template),
            template_from=self.template_from,
            other_base=self.other_base,
        )

    @property
    def engine_options(self) -> dict[str, Any]:
        """The arguments of the engine's loader.

        Raises:
            SafeDraftError: an option is not NAME=VALUE, no engine has it, or it has two values.
        """
        named = {"dtype": self.dtype, "device": self.device}
        chosen: dict[str, Any] = {name: value for name, value in named.items() if value != "auto"}
        if self.draft_dtype:
            chosen["draft_dtype"] = self.draft_dtype
        written = parse_assignments("--engine-option", self.engine_option)
        given = {name: parse_value(value) for name, value in written.items()}
        for name, value in given.items():
            if name in _NO_OPTIONS:
                raise SafeDraftError(f"--engine-option {name}: no engine has it: leave it out")
            if value != chosen.get(name, value):
                option = f"--{name.replace('_', '-')}"
                raise SafeDraftError(
                    f"--engine-option {name}={value}: {option} is {chosen[name]}: "
                    f"set {option} alone"
                )
        return chosen | given

    @property
    def arguments(self) -> dict[str, Any]:
        """The choice as model arguments of an evaluation, without the pair's name."""
        own = [f"draft_dtype={self.draft_dtype}"] if self.draft_dtype else []
        named = {
            "target": self.target,
            "draft": self.draft,
            "adapter": self.adapter,
            "no_adapter": self.no_adapter or None,
            "template": ",".join(self.template or ()) or None,
            "template_from": self.template_from,
            "other_base": self.other_base or None,
            "dtype": None if self.dtype == "auto" else self.dtype,
            "device": None if self.device == "auto" else self.device,
            "engine": None if self.engine == "auto" else self.engine,
            "engine_options": ",".join([*(self.engine_option or ()), *own]) or None,
        }
        return {name: value for name, value in named.items() if value is not None}

    @property
    def words(self) -> list[str]:
        """Command-line arguments that choose the same two models."""
        named = {
            "--pair": self.pair,
            "--target": self.target,
            "--draft": self.draft,
            "--adapter": self.adapter,
            "--template-from": self.template_from,
        }
        words = [word for option, value in named.items() if value for word in (option, value)]
        words += [word for setting in self.template or () for word in ("--template", setting)]
        switches = {"--no-adapter": self.no_adapter, "--other-base": self.other_base}
        return words + [switch for switch, is_set in switches.items() if is_set]

    @property
    def config(self) -> RiskConfig | None:
        """The pair's constants with those of ``--set``; None without ``--set``."""
        return self.spec.config.replace(**self.constants) if self.settings else None

    @property
    def constants(self) -> dict[str, Any]:
        """The constants of ``--set``, whose values are not validated.

        Raises:
            SafeDraftError: a name is not a constant.
        """
        return self.constants_of(None)

    def constants_of(self, rule: str | None) -> dict[str, Any]:
        """The constants of ``--set`` for replies by a rule; None: by the pair's own.

        Raises:
            SafeDraftError: a name is not a constant of the rule, or a value is outside its range.
        """
        from safedraft.pair.options import find_constants, read_constants

        kind = find_constants(rule)
        if self.settings and not kind.model_fields:
            raise SafeDraftError(f"--set: the rule {rule} has no constants: leave it out")
        changes = options.constants(self.settings, kind)
        read_constants(kind, changes, self.spec.config)
        return changes

    def load(self, rule: str | None = None, **further: Any) -> Pair:
        """Load the pair and show the progress.

        Args:
            rule: the rule of the replies; the pair's own when not given.
            further: options of the engine beside ``engine_options``.
        """
        from safedraft.core.config import RiskConfig
        from safedraft.models.progress import show_progress
        from safedraft.pair.load import load_spec

        spec, constants = self.spec, self.constants_of(rule)  # errors before downloads
        config = {name: constants[name] for name in constants if name in RiskConfig.model_fields}
        with show_progress() as report:
            return load_spec(
                spec,
                config=config or None,
                engine=self.engine,
                report=report,
                **self.engine_options | further,
            )


def parse_variables(settings: list[str] | None) -> dict[str, Any] | None:
    """Read ``--template NAME=VALUE``; None if it is not given.

    Raises:
        SafeDraftError: a setting does not have this form.
    """
    if settings is None:
        return None
    given = parse_assignments("--template", settings)
    return {name: parse_value(value) for name, value in given.items()}


def choose_models(*without: str, **defaults: Any) -> Callable[[Callable[..., None]], Any]:
    """Add the argument PAIR and the options of ``ModelChoice``, as the parameter ``models``.

    Args:
        without: options to leave out, and ``PAIR_ARGUMENT`` to leave out the argument.
        defaults: defaults that differ from the usual ones.
    """
    added = options.list_parameters(ModelChoice, without, defaults)
    if PAIR_ARGUMENT not in without:
        added.insert(0, options.make_parameter(PAIR_ARGUMENT, None, PairArgument))

    def choose(pair_argument: str | None = None, **values: Any) -> ModelChoice:
        return ModelChoice(**values).name_pair(pair_argument)

    return options.collect("models", added, choose)
