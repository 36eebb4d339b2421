"""The sandbox: right programs pass, wrong ones fail, and whatever tries more is stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.usefulness import sandbox
from safedraft.evaluation.usefulness.sandbox import Isolation, ResourceLimits, find_isolation, grade
from safedraft.evaluation.usefulness.worker import pack, unpack

pytestmark = pytest.mark.slow  # programs that do not end are waited for

PROMPT = 'def twice(x):\n    """Return x times 2."""\n'
TEST = (
    "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(5) == 10, 'five'\n"
)
RIGHT = "def twice(x):\n    return 2 * x\n"
QUICK = ResourceLimits(seconds=20, cpu_seconds=1, memory=1 << 29)

WRITES = "{folder}/written"

ISOLATIONS: list[Isolation] = ["limits"]
if find_isolation() == "namespaces":
    ISOLATIONS.append("namespaces")


def verdict_on(
    program: str, isolation: Isolation | None = None, limits: ResourceLimits = QUICK
) -> str:
    return grade(program, "twice", PROMPT, TEST, limits, isolation)


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        (RIGHT, "passed"),
        ("import math, re, itertools, hashlib, collections, decimal\n" + RIGHT, "passed"),
        ("print('hello')\n" + RIGHT + "print(twice(3))\n", "passed"),
        (RIGHT + "if __name__ == '__main__':\n    raise SystemExit(3)\n", "passed"),
        ("def twice(x):\n    return 4\n", "failed"),
        ("def twice(x):\n    return str(2 * x)\n", "failed"),
        ("def twice(x):\n    return lambda: 2 * x\n", "failed"),
        ("def twice(x):\n    raise KeyError\n", "failed"),
        ("def twice(x):\n    return twice(x)\n", "failed"),
        ("def other(x):\n    return 2 * x\n", "failed"),
        ("def twice(x) return", "failed"),
        ("", "failed"),
    ],
)
def test_programs_are_tested(program: str, verdict: str, isolation: Isolation) -> None:
    assert verdict_on(program, isolation) == verdict


@pytest.mark.parametrize(
    "trick",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "class Equal(int):\n    def __eq__(self, other): return True\ntwice = lambda x: Equal(0)",
        "class Equal:\n    def __eq__(self, other): return True\ntwice = lambda x: Equal()",
        "def check(candidate): pass\ntwice = None",
        "import builtins\nbuiltins.AssertionError = SystemExit\ntwice = lambda x: 0",
        "import builtins, sys\nbuiltins.exec = builtins.compile = lambda *_: None\n"
        "sys.excepthook = lambda *_: None\ntwice = lambda x: 0",
        "import json\njson.loads = lambda *_: 4\njson.dumps = lambda *_: '{\"value\": 4}'\n"
        "twice = lambda x: 4",
        "import sys\nframe = sys._getframe()\n"
        "while frame:\n    frame.f_globals['examine'] = print\n    frame = frame.f_back\n"
        "twice = lambda x: 4",
        "def twice(x):\n    try: assert x == 4\n    except AssertionError: return 4",
    ],
)
def test_no_trick_passes_the_tests(trick: str) -> None:
    assert verdict_on(trick + "\n") == "failed"


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(
    "deed",
    [
        "import os; os.fork()",
        "import os; os.system('true')",
        "import subprocess; subprocess.run(['true'])",
        "import _posixsubprocess",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.posix_spawn('/bin/true', ['true'], {{}})",
        "import multiprocessing; multiprocessing.Process(target=print).start()",
        "import os; os.kill(os.getppid(), 0)",
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
        "import http.client; http.client.HTTPConnection('127.0.0.1', 9).connect()",
        f"open('{WRITES}', 'w')",
        f"open('{WRITES}', 'x')",
        f"open('{WRITES}', 'a').write('more')",
        f"import os; os.open('{WRITES}', os.O_CREAT)",
        f"import pathlib; pathlib.Path('{WRITES}').touch()",
        "import os; os.remove('{folder}/kept')",
        "import os; os.rename('{folder}/kept', '{folder}/moved')",
        "import os; os.chmod('{folder}/kept', 0)",
        "import os; os.truncate('{folder}/kept', 0)",
        "import shutil; shutil.rmtree('{folder}')",
        "import sqlite3; sqlite3.connect('{folder}/base')",
        "import tempfile; tempfile.mkstemp()",
        "import ctypes",
        "import _ctypes",
        "import gc; gc.get_objects()",
        "import sys; sys.addaudithook(print)",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
    ],
)
def test_what_no_answer_needs_is_stopped(deed: str, isolation: Isolation, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("as it was")
    hidden = f"try:\n    {deed.format(folder=tmp_path)}\nexcept BaseException:\n    pass\n"
    assert verdict_on(hidden + RIGHT, isolation) == "forbidden"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "as it was"


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("name", ["mkfifo", "mknod"])
def test_files_that_no_audit_event_tells_of_are_not_made(
    name: str, isolation: Isolation, tmp_path: Path
) -> None:
    program = (
        f"import os, posix\nfor module in (os, posix):\n    module.{name}('{tmp_path}/made')\n"
    )
    assert verdict_on(program + RIGHT, isolation) == "failed"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif("namespaces" not in ISOLATIONS, reason="the system allows no namespaces")
@pytest.mark.parametrize(
    "deed",
    [
        "open('{folder}/written', 'w')",
        "os.remove('{folder}/kept')",
        "os.kill({pid}, 0)",
        "socket.create_connection(('127.0.0.1', {port}), 5)",
        "os.mkfifo('{folder}/written')",
        "os.setuid(0)",
    ],
)
def test_namespaces_do_not_depend_on_the_audit_hook(deed: str, tmp_path: Path) -> None:
    """The same deeds without a hook, in a confined process and in a free one."""
    (tmp_path / "kept").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = "import os, socket\n" + deed.format(folder=tmp_path, pid=os.getpid(), port=port)
        confined = sandbox._start_python("namespaces", QUICK, "-c", code)
        assert confined.wait(20) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["kept"]
        if "setuid" not in deed:
            free = sandbox._start_python("limits", QUICK, "-c", code)
            assert free.wait(20) == 0


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "while True: print('more' * 1000)",
        "x = ['more' * (1 << 28) for _ in range(1000)]",
        "x = [0]\nwhile True: x += x",
        "import os\nwhile True: os.write(2, b'more')",
        "import os\nfor descriptor in range(3, 16):\n    try: os.write(descriptor, b'5\\n')\n"
        "    except OSError: pass\ntwice = lambda x: 4",
    ],
)
def test_programs_without_end_or_measure_fail(program: str, isolation: Isolation) -> None:
    start = time.monotonic()
    assert verdict_on(program + "\n", isolation) == "failed"
    assert time.monotonic() - start < QUICK.seconds


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(
    "program", ["import time\ntime.sleep(1000)\n", "import signal\nsignal.pause()\n"]
)
def test_programs_that_wait_are_killed(program: str, isolation: Isolation) -> None:
    assert verdict_on(program, isolation, ResourceLimits(seconds=1)) == "timed out"


def test_nothing_is_inherited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (tmp_path / "open").open("w") as file:
        program = (
            "import os, sys\n"
            "assert 'SECRET' not in os.environ and 'PYTHONPATH' not in os.environ\n"
            f"assert not any({str(tmp_path)!r} in path or 'site-packages' in path "
            "for path in sys.path)\n"
            f"for descriptor in range(3, 16):\n"
            f"    try: same = os.fstat(descriptor).st_ino == {(tmp_path / 'open').stat().st_ino}\n"
            "    except OSError: same = False\n"
            "    assert not same\n"
            "assert os.getcwd() == '/'\n"
        )
        assert not file.closed
        assert verdict_on(program + RIGHT) == "passed"


def test_no_process_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = sandbox._start_python

    def record(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(start(*arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    monkeypatch.setattr(sandbox, "_start_python", record)
    assert (
        verdict_on("import time\ntime.sleep(1000)\n", limits=ResourceLimits(seconds=1))
        == "timed out"
    )
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_processes_that_nobody_waits_for_end(isolation: Isolation) -> None:
    read_end, write_end = os.pipe()
    process = sandbox._start_python(
        isolation,
        ResourceLimits(seconds=0),
        "-c",
        "import time; time.sleep(1000)",
        pass_fds=(write_end,),
    )
    os.close(write_end)
    assert os.read(read_end, 1) == b""  # the last process with the other end is gone
    os.close(read_end)
    assert process.wait(20) != 0


def test_tests_can_use_what_the_prompt_defines_and_the_function_by_its_name() -> None:
    prompt = "def half(x):\n    return x / 2\n" + PROMPT
    test = "def check(candidate):\n    assert half(candidate(3)) == 3 == half(twice(3))\n"
    assert grade(RIGHT, "twice", prompt, test, QUICK) == "passed"


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -3,
        1.5,
        float("inf"),
        "a\n'ü",
        [1, (2, [3.0])],
        {"a": (1,), 2: None, (3, 4): {5}},
        frozenset({1, 2}),
        [],
        {},
    ],
)
def test_plain_data_keeps_its_types(value: object) -> None:
    back = unpack(pack(value))
    assert back == value
    assert repr(back) == repr(value)


@pytest.mark.parametrize("value", [object(), len, iter([]), b"bytes", [object()], 1j])
def test_nothing_else_passes(value: object) -> None:
    with pytest.raises(TypeError, match="is not plain data"):
        pack(value)


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    find_isolation.cache_clear()
    monkeypatch.setattr(sandbox.os, "name", "nt")
    with pytest.raises(SafeDraftError, match="Linux and macOS only"):
        verdict_on(RIGHT)


def test_systems_without_namespaces_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    find_isolation.cache_clear()
    monkeypatch.setattr(sandbox, "_FOLDER", Path("/nowhere"))  # so that the trial fails
    assert find_isolation() == "limits"
    find_isolation.cache_clear()
