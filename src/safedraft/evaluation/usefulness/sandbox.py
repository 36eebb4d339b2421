"""Grades a Python function by its tests, in two confined processes that share nothing but data.

One process has the program and the other its tests (``worker.py``). Both are started by
``confine.py`` with limits on time, memory and files, in a session of their own, without the
environment and the open files of this process. Where the system allows unprivileged namespaces they
have no network and can change no file; everywhere an audit hook ends a process that tries to.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.usefulness.worker import FORBIDDEN

Verdict = Literal["passed", "failed", "forbidden", "timed out"]
"""``forbidden``: the program tried to start a process, to connect, to change a file or the like."""

Isolation = Literal["namespaces", "limits"]
"""``limits``: the system allows no namespaces, and what is forbidden is up to the audit hook."""

_FOLDER = Path(__file__).parent
# No site packages, no current folder, no user's folder, no files of byte code.
_PYTHON = ("-S", "-P", "-s", "-B")
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}  # the same verdict on every run


@dataclass(frozen=True)
class ResourceLimits:
    """Limits of the resources of the program, and the same of its tests."""

    seconds: float = 30.0
    """Wall-clock time of a process."""
    cpu_seconds: int = 5
    memory: int = 1 << 30
    """Address space in bytes."""

    def to_dict(self) -> dict[str, int]:
        """The limits as ``confine.py`` takes them."""
        return {
            "seconds": math.ceil(self.seconds) + 1,  # after whoever waits has given up
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_AS": self.memory,
            "RLIMIT_FSIZE": 0,
            "RLIMIT_CORE": 0,
            "RLIMIT_NOFILE": 16,
            "RLIMIT_NPROC": 0,
        }


LIMITS = ResourceLimits()


def grade(
    program: str,
    entry_point: str,
    prompt: str,
    test: str,
    limits: ResourceLimits = LIMITS,
    isolation: Isolation | None = None,
) -> Verdict:
    """Run the tests of a problem on a program.

    Args:
        program: the text of the program, which nobody has to trust.
        entry_point: name of the function in it that is tested. It is called with plain data
            (numbers, strings, booleans, None and collections of them) and has to return such.
        prompt: Python text whose definitions the tests can use.
        test: Python text that defines ``check``, which is called with the function.
        limits: resources that either process may use.
        isolation: by default namespaces where the system allows them.

    Raises:
        SafeDraftError: the system is neither Linux nor macOS.
    """
    isolation = isolation or find_isolation()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        examined = {"prompt": prompt, "test": test, "entry_point": entry_point}
        examiner = _start("examine", examined, ours, limits, isolation)
        try:
            served = {"program": program, "entry_point": entry_point}
            server = _start("serve", served, theirs, limits, isolation)
        except BaseException:
            _kill(examiner)
            raise
        ours.close()
        theirs.close()
        try:
            passed = examiner.wait(limits.seconds) == 0
            return "passed" if passed else _explain(server)
        except subprocess.TimeoutExpired:
            return "timed out"
        finally:
            _kill(server)
            _kill(examiner)


@cache
def find_isolation() -> Isolation:
    """Find out whether the system allows namespaces, by starting a process in some.

    Raises:
        SafeDraftError: the system is neither Linux nor macOS.
    """
    if os.name != "posix":
        raise SafeDraftError(
            "programs written by models are run on Linux and macOS only: leave the suite "
            "human_eval out"
        )
    if sys.platform != "linux":
        return "limits"
    process = _start_python("namespaces", LIMITS, "-c", "pass")
    try:
        return "namespaces" if process.wait(LIMITS.seconds) == 0 else "limits"
    except subprocess.TimeoutExpired:
        return "limits"
    finally:
        _kill(process)


def _start(
    role: Literal["serve", "examine"],
    texts: Mapping[str, str],
    channel: socket.socket,
    limits: ResourceLimits,
    isolation: Isolation,
) -> subprocess.Popen[bytes]:
    """Start one of the two parts of ``worker.py``."""
    with TemporaryFile() as stdin:
        stdin.write(json.dumps(texts).encode())
        stdin.seek(0)
        worker = str(_FOLDER / "worker.py")
        return _start_python(
            isolation,
            limits,
            *(*_PYTHON, worker, role, str(channel.fileno())),
            stdin=stdin.fileno(),
            pass_fds=(channel.fileno(),),
        )


def _start_python(
    isolation: Isolation,
    limits: ResourceLimits,
    *arguments: str,
    stdin: int = subprocess.DEVNULL,
    pass_fds: tuple[int, ...] = (),
) -> subprocess.Popen[bytes]:
    command = [sys.executable, *_PYTHON, str(_FOLDER / "confine.py"), json.dumps(limits.to_dict())]
    return subprocess.Popen(
        [*command, isolation, *arguments],
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=pass_fds,
        cwd="/",
        env=_ENVIRONMENT,
        start_new_session=True,
    )


def _explain(server: subprocess.Popen[bytes]) -> Verdict:
    """Why a program did not pass: by the exit code of its process, which ends without the tests."""
    try:
        return "forbidden" if server.wait(1) == FORBIDDEN else "failed"
    except subprocess.TimeoutExpired:
        return "failed"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
