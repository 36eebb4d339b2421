"""Files that are pinned to their bytes, and what the cache keeps of them."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field

from safedraft.core.config import Positive
from safedraft.core.errors import SafeDraftError
from safedraft.core.files import write_beside
from safedraft.models.progress import ReportProgress, silent

Text = Annotated[str, Field(min_length=1)]


class PinnedFile(BaseModel):
    """A file on the internet and its exact content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Text
    """The file's name."""
    size: Positive
    """Size in bytes."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    def matches(self, path: Path) -> bool:
        """Return whether the file at ``path`` exists and has this content."""
        return path.is_file() and not self._difference(path)

    def require(self, path: Path) -> None:
        """Check that the file at ``path`` has this content.

        Raises:
            SafeDraftError: it has another size or SHA-256.
        """
        if difference := self._difference(path):
            raise SafeDraftError(
                f"{self.file} is not the file that was asked for: {difference}; it was deleted: "
                "run it again, and if that gives the same, check pip's index settings, and report "
                "that the published file has changed"
            )

    def _difference(self, path: Path) -> str:
        size = path.stat().st_size
        if size != self.size:
            return f"expected {self.size} bytes, found {size}"
        with path.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        return "" if sha256 == self.sha256 else f"expected SHA-256 {self.sha256}, found {sha256}"


def build_once(
    path: Path,
    build: Callable[[Path], object],
    *,
    is_complete: Callable[[Path], bool],
    needed: float,
    report: ReportProgress = silent,
) -> Path:
    """Build a file or folder of the cache unless it is complete; one process builds at a time.

    Args:
        path: the file or folder.
        build: writes it to the path that it is called with; a part is never seen at ``path``.
        is_complete: whether what is at ``path`` can be used.
        needed: bytes of disk space that building takes, for the message if the disk is full.
        report: called if another process is building it.

    Returns:
        ``path``.

    Raises:
        SafeDraftError: the disk is full or cannot be written; also what ``build`` raises.
    """
    if is_complete(path):
        return path
    with _explain_disk_errors(path, needed), _lock(path, report):
        if not is_complete(path):  # another process may have built it meanwhile
            with write_beside(path) as unfinished:
                build(unfinished)
    return path


def disk_full(path: Path, needed: float) -> SafeDraftError:
    """Return the error for a disk without room for ``path``, which takes ``needed`` bytes."""
    return SafeDraftError(
        f"the disk is too full: {path.name} takes {needed / 1e9:.2g} GB in {path.parent}: free "
        "some, or set SAFEDRAFT_CACHE to a folder on another disk"
    )


@contextmanager
def _explain_disk_errors(path: Path, needed: float) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(path, needed) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise SafeDraftError(
                f"cannot write to {error.filename or path.parent} ({error.strerror}): set "
                "SAFEDRAFT_CACHE to a folder of yours"
            ) from error
        raise


@contextmanager
def _lock(path: Path, report: ReportProgress) -> Iterator[None]:
    """Keep other processes from building the same file or folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(f"waiting for another process that fetches {path.name}", 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
