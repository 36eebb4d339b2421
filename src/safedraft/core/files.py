"""Files and folders that are either complete or absent: written beside their place, then renamed.

After a crash or a power failure, a path holds its old content or its new content, never a part.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safedraft.core.errors import SafeDraftError

UNFINISHED = ".new"
"""Suffix of a file or folder that is still being written."""


@contextmanager
def write_beside(path: Path) -> Iterator[Path]:
    """Yield an unused path in the same folder; what is written there replaces ``path`` at the end.

    If the block raises, ``path`` stays as it is and the unfinished file or folder is removed.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    remove(unfinished)  # left over from a process that was killed
    try:
        yield unfinished
        _sync(unfinished)
        if unfinished.is_dir():
            remove(path)  # only a file can be replaced in one step
        unfinished.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        remove(unfinished)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, creating its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_beside(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def require_folder(folder: Path) -> None:
    """Check that a folder exists or can be created, before time is spent on what it will hold.

    Raises:
        SafeDraftError: it cannot be created.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SafeDraftError(f"{folder} cannot be created: {error.strerror}") from error
    finally:
        for path in missing:
            if path.exists():
                path.rmdir()


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # a surviving child process may still write there
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or every file in a folder, is on the disk."""
    if path.is_dir():
        for child in path.iterdir():
            _sync(child)
        _sync_folder(path)
    else:
        _fsync(path, os.O_RDWR)


def _sync_folder(folder: Path) -> None:
    if os.name != "nt":  # Windows can only sync files
        _fsync(folder, os.O_RDONLY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
