"""Importing SafeDraft and asking for help take less than half a second."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

COMMANDS = {"import": ["-c", "import safedraft"], "help": ["-m", "safedraft", "--help"]}


def measure_seconds(command: list[str], **place: Any) -> float:
    """Processor time of a command, which other programs on this machine hardly change."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, **place) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_it_starts_in_half_a_second(name: str) -> None:
    command = [sys.executable, *COMMANDS[name]]
    assert min(measure_seconds(command) for _ in range(5)) < 0.5
