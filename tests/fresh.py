"""A fresh virtual environment outside of the repository, with the built wheel and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


def find_distribution(pattern: str) -> Path:
    """The built file of that name in ``dist/``."""
    files = sorted((ROOT / "dist").glob(pattern))
    assert len(files) == 1, f"dist/ has {len(files)} files {pattern}: run make dist"
    return files[0]


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and an empty folder in which its commands run."""

    folder: Path
    work: Path

    @property
    def variables(self) -> Mapping[str, str]:
        """Environment variables: nothing about Python, no hub, caches of its own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return kept | {
            "COLUMNS": "200",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",  # tiny models: threads only wait
            "SAFEDRAFT_CACHE": str(self.folder / "cache"),
            "SAFEDRAFT_CONFIG": str(self.folder / "config"),
            "XDG_DATA_HOME": str(self.folder / "data"),  # where inspect_ai has its buffers
        }

    @classmethod
    def create(cls, folder: Path) -> Environment:
        """An environment without the wheel."""
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        (folder / "work").mkdir()
        return cls(folder, folder / "work")

    def install(self, *extras: str) -> None:
        """Install the wheel from ``dist/`` with its dependencies and those of the extras."""
        chosen = f"[{','.join(extras)}]" if extras else ""
        wheel = f"{find_distribution('*.whl')}{chosen}"
        constraints = ROOT / "constraints.txt"
        # Bytecode, which takes half of the time, is written for what is imported.
        options = ["--quiet", "--no-compile", "--constraint", constraints]
        self.run("python", "-m", "pip", "install", *options, wheel)

    def run(self, *command: object) -> str:
        """What a command of this environment prints, which must not fail."""
        done = self.start(*command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def start(self, *command: object, said: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command of this environment, with ``said`` on its standard input."""
        return subprocess.run(
            self.locate(*command),
            input=said,
            capture_output=True,
            text=True,
            cwd=self.work,
            env=self.variables,
        )

    def locate(self, *command: object) -> list[str]:
        """The words of a command, whose program is this environment's if it has one."""
        name, *words = map(str, command)
        own = self.folder / "venv/bin" / name
        return [str(own) if own.exists() else name, *words]

    @contextmanager
    def serve(self, *command: object) -> Iterator[str]:
        """The address of the server that this command starts, at a free port."""
        running = subprocess.Popen(
            self.locate(*command, "--port", 0),
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.work,
            env=self.variables,
        )
        try:
            assert running.stderr
            said = ""
            while " is served at " not in said:
                line = running.stderr.readline()
                assert line, f"the server ended: {said}"
                said += line
            yield said.rpartition(" is served at ")[2].split("/v1")[0]
        finally:
            running.kill()
            running.wait()
