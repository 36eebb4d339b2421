"""Script of the two confined processes that grade a program: one has it, the other has its tests.

Usage: ``worker.py serve|examine SOCKET``, where SOCKET is the number of an open file that leads to
the other process, and standard input is a JSON object with the texts of the program or the tests.
It imports nothing of SafeDraft, because Python runs it without site packages.

The program never shares a process with the tests. It is called with plain data and returns plain
data, so it can neither see nor change what it is compared with, and ``sys.exit(0)``, an object that
equals everything or an altered ``assert`` cannot make a test pass.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from typing import Any

FORBIDDEN = 77
"""Exit code of a program that tried what an answer to a problem does not need."""

_ALLOWED = frozenset(
    (
        *("compile", "exec", "import", "marshal.load", "marshal.loads", "os.listdir", "os.scandir"),
        *("code.__new__", "function.__new__", "array.__new__", "builtins.id", "time.sleep"),
        *("object.__delattr__", "object.__getattr__", "object.__setattr__"),
        *("sys._getframe", "sys._getframemodulename", "sys.excepthook", "sys.unraisablehook"),
    )
)
"""Audit events of computing and importing; every other one ends the process."""

_FORBIDDEN_MODULES = frozenset(
    (
        *("_ctypes", "_dbm", "_gdbm", "_multiprocessing", "_posixshmem"),
        *("_posixsubprocess", "_testcapi", "ctypes"),
    )
)
"""Modules that can do without an audit event what is forbidden."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_SCALARS = (bool, int, float, str)
_GROUPS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def lock_down() -> None:
    """End this process as soon as it starts another, opens a socket, changes a file or the like.

    This can never be undone. It stops what replies of models do; against a program that is written
    to escape from the interpreter, namespaces are needed as well.
    """
    for name in ("mkfifo", "mknod"):  # the only ones that change a folder without an audit event
        delattr(os, name)
        delattr(sys.modules["posix"], name)
    end, allowed, modules, writes = os._exit, _ALLOWED, _FORBIDDEN_MODULES, _WRITES

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            forbidden = bool(arguments[2] & writes)
        elif event == "import":
            forbidden = arguments[0] in modules
        else:
            forbidden = event not in allowed and not event.startswith("cpython.")
        if forbidden:
            end(FORBIDDEN)

    sys.addaudithook(audit)


class Channel:
    """JSON values in both directions over one socket, a line each."""

    def __init__(self, descriptor: int) -> None:
        self._reader = os.fdopen(descriptor, "rb")
        self._writer = os.fdopen(os.dup(descriptor), "wb")

    def send(self, value: Any) -> None:
        """Send one value."""
        self._writer.write(json.dumps(value).encode() + b"\n")
        self._writer.flush()

    def receive(self) -> Any:
        """Wait for one value.

        Raises:
            EOFError: the other process has ended.
        """
        if line := self._reader.readline():
            return json.loads(line)
        raise EOFError


def serve(channel: Channel, program: str, entry_point: str) -> None:
    """Run the program, then call its function with each list of arguments that is received.

    Raises:
        EOFError: the other process has ended.
    """
    scope: dict[str, Any] = {"__name__": "answer"}
    exec(compile(program, "answer", "exec"), scope)
    while True:
        arguments = unpack(channel.receive())
        try:
            reply = {"value": pack(scope[entry_point](*arguments))}
        except Exception as error:
            reply = {"error": type(error).__name__}
        channel.send(reply)


def examine(channel: Channel, prompt: str, test: str, entry_point: str) -> None:
    """Run the tests on the function that the other process has.

    Raises:
        Exception: a test failed, or the other process has ended.
    """

    def candidate(*arguments: Any) -> Any:
        channel.send(pack(arguments))
        return unpack(channel.receive()["value"])

    scope: dict[str, Any] = {"__name__": "test"}
    exec(compile(prompt, "prompt", "exec"), scope)  # tests call functions that prompts define
    exec(compile(test, "test", "exec"), scope)
    scope[entry_point] = candidate  # some tests call it by its name
    random.seed(0)
    scope["check"](candidate)


def pack(value: Any) -> Any:
    """Convert plain data into what JSON has; the types of collections are kept.

    Raises:
        TypeError: the value is not plain data.
    """
    if value is None:
        return None
    for scalar in _SCALARS:
        if isinstance(value, scalar):
            return scalar(value)
    if isinstance(value, dict):
        return {"dict": [[pack(key), pack(item)] for key, item in value.items()]}
    for name, group in _GROUPS.items():
        if isinstance(value, group):
            return {name: [pack(item) for item in value]}
    raise TypeError(f"{type(value).__name__} is not plain data")


def unpack(packed: Any) -> Any:
    """Convert the result of ``pack`` back."""
    if not isinstance(packed, dict):
        return packed
    ((name, items),) = packed.items()
    if name == "dict":
        return {unpack(key): unpack(item) for key, item in items}
    return _GROUPS[name](unpack(item) for item in items)


def main() -> None:
    """Do one of the two parts; the exit code of ``examine`` is 0 only if every test passed."""
    roles: dict[str, Callable[..., None]] = {"serve": serve, "examine": examine}
    texts = json.load(sys.stdin)
    channel = Channel(int(sys.argv[2]))
    lock_down()
    roles[sys.argv[1]](channel, **texts)


if __name__ == "__main__":
    main()
