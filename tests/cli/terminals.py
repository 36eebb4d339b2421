"""A pseudo-terminal in which tests run a command, read what it shows, and type."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\x1b(?:\[[0-9;?]*)?$")
"""Control sequences, the last of which may not have arrived whole."""


@dataclass
class Terminal:
    """A running command: ``shown`` is everything that it wrote, without control sequences."""

    process: subprocess.Popen[bytes]
    file: int
    raw: bytes = b""
    read: int = 0
    """How much of ``shown`` has been waited for."""

    @property
    def shown(self) -> str:
        return _CODES.sub("", self.raw.decode(errors="ignore"))

    def type(self, keys: str) -> None:
        os.write(self.file, keys.encode())

    def wait_for(self, text: str, seconds: float = 90) -> str:
        """Read until ``text`` is shown; returns what came before it."""
        end = time.monotonic() + seconds
        while (at := self.shown.find(text, self.read)) < 0:
            assert time.monotonic() < end, f"no {text!r} in {self.shown[self.read :]!r}"
            self._read_some()
        before, self.read = self.shown[self.read : at], at + len(text)
        return before

    def end(self, seconds: float = 90) -> int:
        """Read until the command ends; returns its exit code."""
        end = time.monotonic() + seconds
        while self._read_some():
            assert time.monotonic() < end, f"it does not end: {self.shown[self.read :]!r}"
        return self.process.wait(timeout=60)

    def _read_some(self) -> bool:
        if not select.select([self.file], [], [], 1)[0]:
            return True
        try:
            data = os.read(self.file, 65536)
        except OSError:  # the command has ended
            data = b""
        self.raw += data
        return bool(data)


def _take_terminal() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def open_terminal(
    command: Sequence[str], columns: int = 80, **variables: str
) -> Iterator[Terminal]:
    """Run a command in a terminal of so many columns; it is ended at the end of the context."""
    # A worker of the tests has a size of its own, and may ignore Ctrl-C.
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_take_terminal,
        env=kept | {"TERM": "xterm-256color", "INPUTRC": os.devnull} | variables,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
